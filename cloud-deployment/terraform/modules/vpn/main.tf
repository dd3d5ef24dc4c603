locals {
  public_key_parameter = "/${var.name}/vpn/public-key"
}

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

# The machine makes its own private key, which never leaves it, and publishes the public one here.
data "aws_iam_policy_document" "public_key" {
  statement {
    actions = ["ssm:GetParameter", "ssm:PutParameter"]
    resources = [join(":", [
      "arn:${data.aws_partition.this.partition}:ssm:${data.aws_region.this.name}",
      data.aws_caller_identity.this.account_id,
      "parameter${local.public_key_parameter}",
    ])]
  }
}

module "role" {
  source = "../role"

  name = "${var.name}-vpn"
  policies = {
    public-key = data.aws_iam_policy_document.public_key.json
    playbooks  = var.playbooks_policy
  }
}

module "firewall" {
  source = "../firewall"

  name        = "${var.name}-vpn"
  description = "VPN gateway, the only way in"
  vpc_id      = var.vpc_id
  ingress = {
    # The only rule that is open to the internet. WireGuard doesn't answer those whose key it doesn't know.
    wireguard     = { description = "WireGuard from anywhere", from = var.port, protocol = "udp", cidr = "0.0.0.0/0" }
    node-exporter = { description = "Metrics of the machine", from = 9100, group_id = var.monitoring_group_id }
  }
}

resource "aws_instance" "this" {
  ami                    = var.ami
  instance_type          = var.instance_type
  subnet_id              = var.subnet_id
  key_name               = var.key_name
  iam_instance_profile   = module.role.profile
  vpc_security_group_ids = [module.firewall.id]
  user_data              = var.user_data
  ebs_optimized          = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    volume_type = "gp3"
    volume_size = 10
    encrypted   = true
    tags        = { Name = "${var.name}-vpn-root", Role = "vpn" }
  }

  tags = { Name = "${var.name}-vpn", Role = "vpn" }

  # The gateway's key lies on its disk: a newer image or another peer must not replace it. Ansible updates it.
  lifecycle {
    ignore_changes = [ami, user_data]
  }
}

# Apart from the machine, so that peers keep their endpoint when it is replaced. Until it is attached the machine has no
# way out, which is why the first boot tries again.
resource "aws_eip" "this" {
  domain = "vpc"
  tags   = { Name = "${var.name}-vpn", Role = "vpn" }
}

resource "aws_eip_association" "this" {
  allocation_id = aws_eip.this.id
  instance_id   = aws_instance.this.id
}
