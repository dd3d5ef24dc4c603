output "security_group_id" {
  description = "Security group of the machines."
  value       = module.firewall.id
}

output "lb_dns_name" {
  description = "DNS name of the load balancer."
  value       = aws_lb.this.dns_name
}

output "lb_zone_id" {
  description = "Route 53 zone of that name."
  value       = aws_lb.this.zone_id
}
