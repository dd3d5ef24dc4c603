output "bucket" {
  description = "Name of the bucket."
  value       = aws_s3_bucket.this.bucket
}

output "playbooks_hash" {
  description = "Hash of the playbooks, known once they are uploaded."
  value       = aws_s3_object.playbooks.source_hash
}

output "playbooks_policy" {
  description = "Policy to read the playbooks, as JSON."
  value       = data.aws_iam_policy_document.playbooks.json
}

output "triton_policy" {
  description = "Policy to read models, playbooks and images, as JSON."
  value       = data.aws_iam_policy_document.triton.json
}

output "repository_url" {
  description = "Registry of Triton's image."
  value       = aws_ecr_repository.triton.repository_url
}
