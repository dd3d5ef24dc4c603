variable "name" {
  description = "Name of the deployment."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "playbooks" {
  description = "Path of the packed playbooks."
  type        = string
}

variable "force_destroy" {
  description = "Delete the bucket although something is in it."
  type        = bool
}
