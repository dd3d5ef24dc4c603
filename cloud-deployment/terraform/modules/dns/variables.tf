variable "zone" {
  description = "Private DNS zone."
  type        = string
}

variable "vpc_id" {
  description = "VPC that sees the zone."
  type        = string
}

variable "redis_ips" {
  description = "Addresses of the Redis nodes."
  type        = list(string)
}

variable "monitoring_ip" {
  description = "Address of the monitoring."
  type        = string
}

variable "vpn_private_ip" {
  description = "Address of the VPN gateway inside the VPC."
  type        = string
}

variable "vpn_public_ip" {
  description = "Address of the VPN gateway on the internet."
  type        = string
}

variable "public_zone_id" {
  description = "Public zone for the VPN's name; empty for none."
  type        = string
}

variable "triton_lb" {
  description = "Load balancer of the Triton machines."
  type = object({
    dns_name = string
    zone_id  = string
  })
}
