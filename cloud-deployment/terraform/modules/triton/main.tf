locals {
  machine_tags = merge(var.tags, { Name = var.group_name, Role = "triton" })
  metric_space = "Recsys/Triton"
}

data "aws_iam_policy_document" "run" {
  statement {
    actions   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
    resources = var.secret_arns
  }

  statement {
    actions   = ["ssm:GetParameter"]
    resources = [var.ca_certificate_arn]
  }

  # Metrics have no ARNs; the condition keeps the machines to their own.
  statement {
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = [local.metric_space]
    }
  }
}

module "role" {
  source = "../role"

  name = var.group_name
  policies = {
    assets = var.assets_policy
    run    = data.aws_iam_policy_document.run.json
  }
}

resource "aws_launch_template" "this" {
  name                   = var.group_name
  description            = "Triton machines"
  image_id               = var.ami
  instance_type          = var.instance_type
  key_name               = var.key_name
  user_data              = base64encode(var.user_data)
  update_default_version = true
  ebs_optimized          = true
  vpc_security_group_ids = [module.firewall.id]
  tags                   = { Name = var.group_name, Role = "triton" }

  iam_instance_profile {
    name = module.role.profile
  }

  # Triton reads models from S3 inside a container, one hop further than the machine itself.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2
  }

  block_device_mappings {
    device_name = var.root_device_name

    ebs {
      volume_type           = "gp3"
      volume_size           = var.disk_gib
      encrypted             = "true"
      delete_on_termination = "true"
    }
  }

  monitoring {
    enabled = true
  }

  dynamic "tag_specifications" {
    for_each = toset(["instance", "volume", "network-interface"])

    content {
      resource_type = tag_specifications.value
      tags          = local.machine_tags
    }
  }
}

resource "aws_autoscaling_group" "this" {
  name                      = var.group_name
  min_size                  = var.min_size
  max_size                  = var.max_size
  desired_capacity          = var.start_size
  vpc_zone_identifier       = var.subnet_ids
  target_group_arns         = [aws_lb_target_group.grpc.arn]
  health_check_type         = "ELB"
  health_check_grace_period = 1200 # drivers, a large image and models come first
  default_instance_warmup   = 600

  # Machines become healthy minutes after the apply, and only once there is an image: don't wait for them.
  wait_for_capacity_timeout = "0"

  launch_template {
    id      = aws_launch_template.this.id
    version = aws_launch_template.this.latest_version
  }

  # A new template replaces the machines one by one, each after its successor is healthy.
  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage = 100
      max_healthy_percentage = 150
      auto_rollback          = true
    }
  }

  dynamic "tag" {
    for_each = local.machine_tags

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  # Load decides from now on.
  lifecycle {
    ignore_changes = [desired_capacity]
  }
}

resource "aws_autoscaling_policy" "queue" {
  name                   = "${var.group_name}-queue"
  autoscaling_group_name = aws_autoscaling_group.this.name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = var.queue_target

    # The machines report it themselves, as set up by Ansible.
    customized_metric_specification {
      namespace   = local.metric_space
      metric_name = "QueueMicroseconds"
      statistic   = "Average"

      metric_dimension {
        name  = "AutoScalingGroupName"
        value = aws_autoscaling_group.this.name
      }
    }
  }
}
