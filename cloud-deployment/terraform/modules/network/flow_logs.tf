locals {
  flow_logs = var.flow_log_days > 0 ? 1 : 0
}

resource "aws_cloudwatch_log_group" "flow" {
  count = local.flow_logs

  name              = "/${var.name}/flow-logs"
  retention_in_days = var.flow_log_days
  tags              = { Name = "${var.name}-flow-logs" }
}

data "aws_iam_policy_document" "flow_assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["vpc-flow-logs.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "flow" {
  count = local.flow_logs

  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"]
    resources = ["${aws_cloudwatch_log_group.flow[0].arn}:*"]
  }
}

resource "aws_iam_role" "flow" {
  count = local.flow_logs

  name               = "${var.name}-flow-logs"
  description        = "Writes the flow logs of ${var.name}"
  assume_role_policy = data.aws_iam_policy_document.flow_assume.json
  tags               = { Name = "${var.name}-flow-logs" }
}

resource "aws_iam_role_policy" "flow" {
  count = local.flow_logs

  name   = "write"
  role   = aws_iam_role.flow[0].name
  policy = data.aws_iam_policy_document.flow[0].json
}

resource "aws_flow_log" "this" {
  count = local.flow_logs

  vpc_id          = aws_vpc.this.id
  traffic_type    = "ALL"
  log_destination = aws_cloudwatch_log_group.flow[0].arn
  iam_role_arn    = aws_iam_role.flow[0].arn
  tags            = { Name = var.name }
}
