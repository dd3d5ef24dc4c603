locals {
  # Short, so that a replaced machine is found soon.
  ttl = 60

  addresses = merge(
    { for index, ip in var.redis_ips : "redis-${index + 1}" => [ip] },
    {
      redis   = var.redis_ips
      grafana = [var.monitoring_ip]
      vpn     = [var.vpn_private_ip]
    },
  )
}

resource "aws_route53_zone" "private" {
  name    = var.zone
  comment = "Names inside the VPC"
  tags    = { Name = var.zone }

  vpc {
    vpc_id = var.vpc_id
  }
}

resource "aws_route53_record" "address" {
  for_each = local.addresses

  zone_id = aws_route53_zone.private.zone_id
  name    = "${each.key}.${var.zone}"
  type    = "A"
  ttl     = local.ttl
  records = each.value
}

resource "aws_route53_record" "triton" {
  zone_id = aws_route53_zone.private.zone_id
  name    = "triton.${var.zone}"
  type    = "A"

  alias {
    name                   = var.triton_lb.dns_name
    zone_id                = var.triton_lb.zone_id
    evaluate_target_health = true
  }
}

data "aws_route53_zone" "public" {
  count = var.public_zone_id != "" ? 1 : 0

  zone_id = var.public_zone_id
}

resource "aws_route53_record" "vpn_public" {
  count = var.public_zone_id != "" ? 1 : 0

  zone_id = var.public_zone_id
  name    = "vpn.${data.aws_route53_zone.public[0].name}"
  type    = "A"
  ttl     = 300
  records = [var.vpn_public_ip]
}
