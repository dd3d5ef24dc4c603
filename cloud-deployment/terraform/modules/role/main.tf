data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_partition" "this" {}

resource "aws_iam_role" "this" {
  name               = var.name
  description        = "Machines of ${var.name}"
  assume_role_policy = data.aws_iam_policy_document.assume.json
  tags               = { Name = var.name }
}

resource "aws_iam_role_policy_attachment" "ssm" {
  role       = aws_iam_role.this.name
  policy_arn = "arn:${data.aws_partition.this.partition}:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_role_policy" "this" {
  for_each = var.policies

  name   = each.key
  role   = aws_iam_role.this.name
  policy = each.value
}

resource "aws_iam_instance_profile" "this" {
  name = var.name
  role = aws_iam_role.this.name
  tags = { Name = var.name }

  # A machine must not start before its role may do what the first boot does.
  depends_on = [aws_iam_role_policy_attachment.ssm, aws_iam_role_policy.this]
}
