resource "aws_security_group" "this" {
  name        = var.name
  description = var.description
  vpc_id      = var.vpc_id
  tags        = { Name = var.name }
}

# Rules are resources of their own, so that two groups can name each other.
resource "aws_vpc_security_group_ingress_rule" "this" {
  for_each = var.ingress

  security_group_id            = aws_security_group.this.id
  description                  = each.value.description
  ip_protocol                  = each.value.protocol
  from_port                    = each.value.protocol == "-1" ? null : each.value.from
  to_port                      = each.value.protocol == "-1" ? null : coalesce(each.value.to, each.value.from)
  referenced_security_group_id = each.value.self ? aws_security_group.this.id : each.value.group_id
  cidr_ipv4                    = each.value.cidr
  tags                         = { Name = "${var.name}-${each.key}" }
}

# Outwards everything is open: package mirrors and AWS's services have no fixed addresses.
resource "aws_vpc_security_group_egress_rule" "all" {
  security_group_id = aws_security_group.this.id
  description       = "Packages, AWS, and what the machine calls"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
  tags              = { Name = "${var.name}-out" }
}
