module "lb_firewall" {
  source = "../firewall"

  name        = "${var.group_name}-lb"
  description = "Load balancer of the Triton machines"
  vpc_id      = var.vpc_id
  ingress = merge(
    { grpc-from-vpn = { description = "gRPC from the VPN", from = 8001, group_id = var.vpn_group_id } },
    {
      for cidr in var.client_cidrs :
      "grpc-from-${cidr}" => { description = "gRPC from clients", from = 8001, cidr = cidr }
    },
  )
}

module "firewall" {
  source = "../firewall"

  name        = var.group_name
  description = "Triton machines"
  vpc_id      = var.vpc_id
  ingress = {
    grpc-from-lb  = { description = "gRPC by the load balancer", from = 8001, group_id = module.lb_firewall.id }
    grpc-from-vpn = { description = "gRPC from the VPN, directly", from = 8001, group_id = var.vpn_group_id }
    health        = { description = "Load balancer's health checks", from = 8002, group_id = module.lb_firewall.id }
    metrics       = { description = "Metrics of Triton", from = 8002, group_id = var.monitoring_group_id }
    node-exporter = { description = "Metrics of the machine", from = 9100, group_id = var.monitoring_group_id }
    ssh           = { description = "SSH from the VPN", from = 22, group_id = var.vpn_group_id }
  }
}

resource "aws_lb" "this" {
  name                             = var.group_name
  internal                         = true
  load_balancer_type               = "network"
  subnets                          = var.lb_subnet_ids
  security_groups                  = [module.lb_firewall.id]
  enable_cross_zone_load_balancing = true
  enable_deletion_protection       = var.deletion_protection
  tags                             = { Name = var.group_name, Role = "triton" }
}

resource "aws_lb_target_group" "grpc" {
  name                 = "${var.group_name}-grpc"
  port                 = 8001
  protocol             = "TCP"
  vpc_id               = var.vpc_id
  deregistration_delay = 30
  tags                 = { Name = "${var.group_name}-grpc", Role = "triton" }

  # With TLS, Triton's HTTP is for the machine itself only. Its page of metrics opens once all models are loaded.
  health_check {
    protocol            = "HTTP"
    port                = "8002"
    path                = "/metrics"
    matcher             = "200"
    interval            = 10
    healthy_threshold   = 2
    unhealthy_threshold = 3
  }
}

# TLS ends in Triton itself, so that nothing is in clear between the load balancer and the machines.
resource "aws_lb_listener" "grpc" {
  load_balancer_arn = aws_lb.this.arn
  port              = 8001
  protocol          = "TCP"
  tags              = { Name = "${var.group_name}-grpc", Role = "triton" }

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.grpc.arn
  }
}
