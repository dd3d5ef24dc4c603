variable "name" {
  description = "Name of the deployment."
  type        = string
}

variable "instance_type" {
  description = "Instance type."
  type        = string
}

variable "ami" {
  description = "Machine image."
  type        = string
}

variable "key_name" {
  description = "Key pair for SSH."
  type        = string
}

variable "vpc_id" {
  description = "VPC."
  type        = string
}

variable "user_data" {
  description = "Script of the first boot."
  type        = string
}

variable "engine" {
  description = "Which Redis: oss or enterprise."
  type        = string
}

variable "nodes" {
  description = "Number of nodes."
  type        = number
}

variable "subnet_ids" {
  description = "Private subnets, in the order of the zones."
  type        = list(string)
}

variable "zones" {
  description = "Availability zones."
  type        = list(string)
}

variable "data_gib" {
  description = "Size of each data volume in GiB."
  type        = number
}

variable "snapshots_kept" {
  description = "Daily snapshots kept of each data volume; 0 for none."
  type        = number
}

variable "kms_key_arn" {
  description = "KMS key of the volumes; empty for the account's."
  type        = string
}

variable "triton_group_id" {
  description = "Security group of the Triton machines."
  type        = string
}

variable "vpn_group_id" {
  description = "Security group of the VPN gateway."
  type        = string
}

variable "monitoring_group_id" {
  description = "Security group of the monitoring."
  type        = string
}

variable "deletion_protection" {
  description = "Refuse to delete the machines; snapshot volumes before they go."
  type        = bool
}
