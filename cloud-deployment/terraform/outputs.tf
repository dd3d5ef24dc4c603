output "ansible" {
  description = "Variables of the playbooks: terraform output -json ansible > vars.json."
  value = merge(local.ansible, {
    vpn_endpoint = coalesce(module.dns.vpn_public_name, module.vpn.public_ip)
  })
}

output "vpn_endpoint" {
  description = "Where VPN clients connect to: host and UDP port."
  value       = "${coalesce(module.dns.vpn_public_name, module.vpn.public_ip)}:${var.vpn_port}"
}

output "vpn_public_key_parameter" {
  description = "SSM parameter in which the VPN gateway leaves its WireGuard public key."
  value       = module.vpn.public_key_parameter
}

output "ca_certificate_parameter" {
  description = "SSM parameter in which Ansible leaves the certificate authority's certificate."
  value       = module.secrets.ca_certificate_parameter
}

output "redis" {
  description = "Names of Redis inside the VPN: all nodes together, and each."
  value = {
    name  = module.dns.names.redis
    nodes = module.dns.redis_names
  }
}

output "redis_nodes" {
  description = "Each Redis node's machine: address, zone, data volume."
  value       = module.redis.instances
}

output "triton" {
  description = "Triton's name and gRPC port inside the VPN."
  value       = "${module.dns.names.triton}:8001"
}

output "grafana_url" {
  description = "Grafana inside the VPN."
  value       = "https://${module.dns.names.grafana}:3000"
}

output "assets_bucket" {
  description = "Bucket for models and playbooks."
  value       = module.assets.bucket
}

output "triton_repository" {
  description = "Registry that Triton's image is pushed to."
  value       = module.assets.repository_url
}

output "secrets" {
  description = "Names of the secrets; Ansible gives them their values."
  value       = module.secrets.names
}

output "next_steps" {
  description = "What to do after the first apply."
  value       = <<-TEXT
    1. Push Triton's image as ${local.triton_image}; Triton's machines try again until it is there.
    2. Read the VPN's public key:
       aws ssm get-parameter --region ${var.region} --name ${module.vpn.public_key_parameter} --query Parameter.Value --output text
       It is there a few minutes after the apply. Connect to ${coalesce(module.dns.vpn_public_name, module.vpn.public_ip)}:${var.vpn_port}.
    3. make cloud-vpn, connect, make cloud-configure.
    4. Triton answers at ${module.dns.names.triton}:8001, Grafana at ${module.dns.names.grafana}.
  TEXT
}
