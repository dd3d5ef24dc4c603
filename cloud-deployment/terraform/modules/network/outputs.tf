output "vpc_id" {
  description = "Id of the VPC."
  value       = aws_vpc.this.id
}

output "private_subnet_ids" {
  description = "Private subnets, in the order of the zones."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
}

# For machines, which must not start before they have a way out: their first boot fetches packages.
output "private_subnet_ids_online" {
  description = "The same, once their routes to the internet are there."
  value       = [for zone in var.zones : aws_subnet.private[zone].id]
  depends_on  = [aws_route.private, aws_route_table_association.private]
}

output "public_subnet_ids_online" {
  description = "Public subnets, in the order of the zones, once their routes to the internet are there."
  value       = [for zone in var.zones : aws_subnet.public[zone].id]
  depends_on  = [aws_route.public, aws_route_table_association.public]
}
