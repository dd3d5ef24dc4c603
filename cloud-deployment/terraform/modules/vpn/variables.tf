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
  description = "Public subnet."
  type        = string
}

variable "port" {
  description = "UDP port."
  type        = number
}

variable "playbooks_policy" {
  description = "Policy that lets the machine read the playbooks, as JSON."
  type        = string
}

variable "monitoring_group_id" {
  description = "Security group of the monitoring."
  type        = string
}
