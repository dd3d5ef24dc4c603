variable "name" {
  description = "Name of the security group."
  type        = string
}

variable "description" {
  description = "What it protects. Changing it replaces the group."
  type        = string
}

variable "vpc_id" {
  description = "VPC of the group."
  type        = string
}

variable "ingress" {
  description = "Who may come in. Each rule names one source: a security group, a network, or the group itself."
  type = map(object({
    description = string
    from        = number
    to          = optional(number) # the same as from
    protocol    = optional(string, "tcp")
    group_id    = optional(string)
    cidr        = optional(string)
    self        = optional(bool, false)
  }))
}
