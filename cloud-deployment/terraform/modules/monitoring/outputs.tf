output "private_ip" {
  description = "Address of the machine."
  value       = aws_instance.this.private_ip
}

output "security_group_id" {
  description = "Security group of the machine."
  value       = module.firewall.id
}
