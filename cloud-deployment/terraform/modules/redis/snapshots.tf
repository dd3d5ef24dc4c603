# A snapshot of every data volume, every night. A volume is copied as it is at one moment, and Redis' append-only file
# is made to survive just that.
locals {
  snapshots    = var.snapshots_kept > 0 ? 1 : 0
  aws_policies = "arn:${data.aws_partition.this.partition}:iam::aws:policy"
}

data "aws_iam_policy_document" "snapshots_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["dlm.amazonaws.com"]
    }
  }
}

data "aws_partition" "this" {}

resource "aws_iam_role" "snapshots" {
  count = local.snapshots

  name               = "${var.name}-redis-snapshots"
  description        = "Takes snapshots of the Redis volumes of ${var.name}"
  assume_role_policy = data.aws_iam_policy_document.snapshots_assume.json
  tags               = { Name = "${var.name}-redis-snapshots" }
}

resource "aws_iam_role_policy_attachment" "snapshots" {
  count = local.snapshots

  role       = aws_iam_role.snapshots[0].name
  policy_arn = "${local.aws_policies}/service-role/AWSDataLifecycleManagerServiceRole"
}

resource "aws_dlm_lifecycle_policy" "snapshots" {
  count = local.snapshots

  description        = "Nightly snapshots of the Redis volumes of ${var.name}"
  execution_role_arn = aws_iam_role.snapshots[0].arn
  state              = "ENABLED"
  tags               = { Name = "${var.name}-redis", Role = "redis" }

  policy_details {
    resource_types = ["VOLUME"]
    target_tags    = { Backup = "${var.name}-redis" }

    schedule {
      name      = "nightly"
      copy_tags = true

      create_rule {
        interval      = 24
        interval_unit = "HOURS"
        times         = ["02:00"]
      }

      retain_rule {
        count = var.snapshots_kept
      }
    }
  }
}
