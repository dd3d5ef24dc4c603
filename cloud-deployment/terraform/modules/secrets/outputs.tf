output "arns" {
  description = "ARNs of the secrets, by their short name."
  value       = { for key, secret in aws_secretsmanager_secret.this : key => secret.arn }
}

output "names" {
  description = "Names of the secrets, by their short name."
  value       = { for key, secret in aws_secretsmanager_secret.this : key => secret.name }
}

output "ca_certificate_parameter" {
  description = "SSM parameter with the certificate authority's certificate."
  value       = local.ca_certificate_parameter
}

output "ca_certificate_arn" {
  description = "ARN of that parameter."
  value = join(":", [
    "arn:${data.aws_partition.this.partition}:ssm:${data.aws_region.this.name}",
    data.aws_caller_identity.this.account_id,
    "parameter${local.ca_certificate_parameter}",
  ])
}
