output "private_ip" {
  description = "Address of the gateway inside the VPC."
  value       = aws_instance.this.private_ip
}

output "public_ip" {
  description = "Address of the gateway on the internet."
  value       = aws_eip.this.public_ip
}

output "security_group_id" {
  description = "Security group of the gateway."
  value       = module.firewall.id
}

output "public_key_parameter" {
  description = "SSM parameter with the gateway's public key."
  value       = local.public_key_parameter
}
