output "names" {
  description = "Names inside the VPC, by what they are of."
  value       = { for host in ["redis", "triton", "grafana", "vpn"] : host => "${host}.${var.zone}" }
}

output "redis_names" {
  description = "Names of the Redis nodes."
  value       = [for index in range(length(var.redis_ips)) : "redis-${index + 1}.${var.zone}"]
}

output "vpn_public_name" {
  description = "Public name of the VPN gateway; empty without a public zone."
  value       = one(aws_route53_record.vpn_public[*].fqdn) == null ? "" : one(aws_route53_record.vpn_public[*].fqdn)
}
