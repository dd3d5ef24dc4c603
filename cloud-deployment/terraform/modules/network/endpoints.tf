# Free of charge: models and playbooks come from S3 without passing NAT.
resource "aws_vpc_endpoint" "s3" {
  vpc_id            = aws_vpc.this.id
  service_name      = "com.amazonaws.${var.region}.s3"
  vpc_endpoint_type = "Gateway"
  route_table_ids   = concat([aws_route_table.public.id], [for table in aws_route_table.private : table.id])
  tags              = { Name = "${var.name}-s3" }
}

module "endpoints_firewall" {
  source = "../firewall"
  count  = var.interface_endpoints ? 1 : 0

  name        = "${var.name}-endpoints"
  description = "Endpoints of AWS services inside the VPC"
  vpc_id      = aws_vpc.this.id
  ingress = {
    https = { description = "HTTPS from the VPC", from = 443, cidr = var.cidr }
  }
}

resource "aws_vpc_endpoint" "interface" {
  for_each = local.interface_services

  vpc_id              = aws_vpc.this.id
  service_name        = "com.amazonaws.${var.region}.${each.key}"
  vpc_endpoint_type   = "Interface"
  private_dns_enabled = true
  subnet_ids          = [for subnet in aws_subnet.private : subnet.id]
  security_group_ids  = [module.endpoints_firewall[0].id]
  tags                = { Name = "${var.name}-${each.key}" }
}
