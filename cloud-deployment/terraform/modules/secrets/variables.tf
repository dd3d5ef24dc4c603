variable "name" {
  description = "Name of the deployment."
  type        = string
}

variable "recovery_days" {
  description = "Days for which a deleted secret can be restored."
  type        = number
}

variable "secrets" {
  description = "Secrets by their short name, with what they are."
  type        = map(string)
}
