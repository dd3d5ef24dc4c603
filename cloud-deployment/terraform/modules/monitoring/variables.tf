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

variable "subnet_id" {
  description = "Private subnet."
  type        = string
}

variable "zone" {
  description = "Zone of the subnet."
  type        = string
}

variable "data_gib" {
  description = "Size of the data volume in GiB."
  type        = number
}

variable "kms_key_arn" {
  description = "KMS key of the volumes; empty for the account's."
  type        = string
}

variable "vpn_group_id" {
  description = "Security group of the VPN gateway."
  type        = string
}

variable "deletion_protection" {
  description = "Refuse to delete the machine; snapshot its volume before it goes."
  type        = bool
}
