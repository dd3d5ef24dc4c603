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

variable "root_device_name" {
  description = "Name of the image's root disk."
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

variable "group_name" {
  description = "Name of the Auto Scaling group."
  type        = string
}

variable "lb_subnet_ids" {
  description = "Private subnets for the load balancer."
  type        = list(string)
}

variable "subnet_ids" {
  description = "Private subnets for the machines, which need a way out."
  type        = list(string)
}

variable "min_size" {
  description = "Fewest machines."
  type        = number
}

variable "max_size" {
  description = "Most machines."
  type        = number
}

variable "start_size" {
  description = "Machines to start with."
  type        = number
}

variable "queue_target" {
  description = "Microseconds that a request may wait on average."
  type        = number
}

variable "disk_gib" {
  description = "Size of the disk in GiB."
  type        = number
}

variable "vpn_group_id" {
  description = "Security group of the VPN gateway."
  type        = string
}

variable "monitoring_group_id" {
  description = "Security group of the monitoring."
  type        = string
}

variable "client_cidrs" {
  description = "Networks that may call Triton, besides the VPN."
  type        = list(string)
}

variable "deletion_protection" {
  description = "Refuse to delete the load balancer."
  type        = bool
}

variable "assets_policy" {
  description = "Policy that lets the machines read models and images, as JSON."
  type        = string
}

variable "ca_certificate_arn" {
  description = "SSM parameter with the certificate authority's certificate."
  type        = string
}

variable "secret_arns" {
  description = "Secrets that the machines may read."
  type        = list(string)
}

variable "tags" {
  description = "Tags for what gets none from the provider: the machines and their disks."
  type        = map(string)
}
