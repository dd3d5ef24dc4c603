# Secrets without values: Ansible has Secrets Manager make them up on its first run, so that they are in no state file.
resource "aws_secretsmanager_secret" "this" {
  for_each = var.secrets

  name                    = "${var.name}/${each.key}"
  description             = each.value
  recovery_window_in_days = var.recovery_days
  tags                    = { Name = "${var.name}/${each.key}" }
}

data "aws_partition" "this" {}
data "aws_region" "this" {}
data "aws_caller_identity" "this" {}

# The authority's certificate is public. Ansible writes it; machines may read it.
locals {
  ca_certificate_parameter = "/${var.name}/ca-certificate"
}
