variable "name" {
  description = "Name of the deployment."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC."
  type        = string
}

variable "zones" {
  description = "Availability zones."
  type        = list(string)
}

variable "nat_per_zone" {
  description = "A NAT gateway in every zone, or one for all."
  type        = bool
}

variable "interface_endpoints" {
  description = "Reach AWS's services from inside the VPC."
  type        = bool
}

variable "flow_log_days" {
  description = "Days for which flow logs are kept; 0 for none."
  type        = number
}
