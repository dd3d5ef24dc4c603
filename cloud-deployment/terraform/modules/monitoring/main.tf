# Prometheus finds the machines to watch by asking EC2. These calls know no narrower resource than everything.
data "aws_iam_policy_document" "discovery" {
  statement {
    actions   = ["ec2:DescribeInstances", "ec2:DescribeAvailabilityZones"]
    resources = ["*"]
  }
}

module "role" {
  source = "../role"

  name     = "${var.name}-monitoring"
  policies = { discovery = data.aws_iam_policy_document.discovery.json }
}

module "firewall" {
  source = "../firewall"

  name        = "${var.name}-monitoring"
  description = "Prometheus and Grafana"
  vpc_id      = var.vpc_id
  ingress = {
    ssh     = { description = "SSH from the VPN", from = 22, group_id = var.vpn_group_id }
    grafana = { description = "Grafana from the VPN", from = 3000, group_id = var.vpn_group_id }
  }
}

resource "aws_instance" "this" {
  ami                         = var.ami
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_id
  key_name                    = var.key_name
  iam_instance_profile        = module.role.profile
  vpc_security_group_ids      = [module.firewall.id]
  user_data                   = var.user_data
  associate_public_ip_address = false
  disable_api_termination     = var.deletion_protection
  ebs_optimized               = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = 20
    encrypted   = true
    kms_key_id  = var.kms_key_arn != "" ? var.kms_key_arn : null
    tags        = { Name = "${var.name}-monitoring-root", Role = "monitoring" }
  }

  tags = { Name = "${var.name}-monitoring", Role = "monitoring" }

  # A newer image must not replace the machine. Ansible updates it.
  lifecycle {
    ignore_changes = [ami, user_data]
  }
}

resource "aws_ebs_volume" "data" {
  availability_zone = var.zone
  type              = "gp3"
  size              = var.data_gib
  encrypted         = true
  kms_key_id        = var.kms_key_arn != "" ? var.kms_key_arn : null
  final_snapshot    = var.deletion_protection
  tags              = { Name = "${var.name}-monitoring-data", Role = "monitoring" }
}

resource "aws_volume_attachment" "data" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.data.id
  instance_id = aws_instance.this.id

  stop_instance_before_detaching = true
}
