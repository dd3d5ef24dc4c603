module "role" {
  source = "../role"

  name = "${var.name}-redis"
}

# Nodes on distinct hardware, for the nodes that share a zone.
resource "aws_placement_group" "this" {
  name     = "${var.name}-redis"
  strategy = "spread"
  tags     = { Name = "${var.name}-redis", Role = "redis" }
}

resource "aws_instance" "node" {
  count = var.nodes

  ami                         = var.ami
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_ids[count.index % length(var.subnet_ids)]
  placement_group             = aws_placement_group.this.name
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
    tags        = { Name = "${var.name}-redis-${count.index + 1}-root", Role = "redis" }
  }

  tags = { Name = "${var.name}-redis-${count.index + 1}", Role = "redis" }

  # A newer image or another first boot must not replace a node with its data. Ansible updates nodes.
  lifecycle {
    ignore_changes = [ami, user_data]
  }
}

resource "aws_ebs_volume" "data" {
  count = var.nodes

  availability_zone = var.zones[count.index % length(var.zones)]
  type              = "gp3"
  size              = var.data_gib
  encrypted         = true
  kms_key_id        = var.kms_key_arn != "" ? var.kms_key_arn : null
  final_snapshot    = var.deletion_protection

  tags = {
    Name   = "${var.name}-redis-${count.index + 1}-data"
    Role   = "redis"
    Backup = "${var.name}-redis"
  }
}

resource "aws_volume_attachment" "data" {
  count = var.nodes

  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.data[count.index].id
  instance_id = aws_instance.node[count.index].id

  # Redis writes to it: stop the machine before the disk is taken away.
  stop_instance_before_detaching = true
}
