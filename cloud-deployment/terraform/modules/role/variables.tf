variable "name" {
  description = "Name of the role and of its instance profile."
  type        = string
}

variable "policies" {
  description = "What the machine may do beyond Session Manager: policies as JSON, by name."
  type        = map(string)
  default     = {}
}
