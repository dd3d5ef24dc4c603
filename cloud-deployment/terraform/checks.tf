# What can only be told from several variables, or by asking AWS. All of it is refused while planning.

data "aws_availability_zones" "here" {
  state = "available"

  # Without local zones, which have neither NAT gateways nor most instance types.
  filter {
    name   = "opt-in-status"
    values = ["opt-in-not-required"]
  }

  lifecycle {
    postcondition {
      condition     = length(setsubtract(var.zones, self.names)) == 0
      error_message = "zones: ${join(", ", setsubtract(var.zones, self.names))} is not in ${var.region}; set zones out of ${join(", ", self.names)}, or none."
    }
  }
}

data "aws_ec2_instance_type" "used" {
  for_each = toset([
    var.redis_instance_type, var.triton_instance_type, var.monitoring_instance_type, var.vpn_instance_type
  ])

  instance_type = each.value

  lifecycle {
    postcondition {
      condition     = contains(self.supported_architectures, "x86_64")
      error_message = "${each.value} is not an x86-64 machine: set another redis_, triton_, monitoring_ or vpn_instance_type."
    }

    postcondition {
      condition     = each.value != var.triton_instance_type || length(self.gpus) > 0
      error_message = "triton_instance_type: ${each.value} has no GPU; set one that has, such as g6.xlarge."
    }
  }
}

# Holds nothing: only a place for the conditions, since variables can't look at each other before Terraform 1.9.
resource "terraform_data" "checks" {
  lifecycle {
    precondition {
      condition = local.vpc_prefix_in_common != local.vpn_prefix_in_common
      error_message = join(" ", [
        "vpn_network: ${var.vpn_network} overlaps with vpc_cidr ${var.vpc_cidr};",
        "set vpn_network or vpc_cidr to another network.",
      ])
    }

    precondition {
      condition = alltrue([
        for peer in var.vpn_peers :
        try(cidrhost("${peer.address}/${local.vpn_bits}", 0) == cidrhost(var.vpn_network, 0), false)
        && !contains([for host in [0, 1, -1] : cidrhost(var.vpn_network, host)], peer.address)
      ])
      error_message = join(" ", [
        "vpn_peers: set each address to one of vpn_network ${var.vpn_network}, without a prefix length,",
        "but neither to its first one (the gateway's) nor to its last.",
      ])
    }

    precondition {
      condition = var.triton_min_size <= var.triton_start_size && var.triton_start_size <= var.triton_max_size
      error_message = join(" ", [
        "triton_min_size ${var.triton_min_size}, triton_start_size ${var.triton_start_size} and",
        "triton_max_size ${var.triton_max_size}: set them so that none is larger than the next.",
      ])
    }
  }
}

locals {
  vpn_bits = tonumber(split("/", var.vpn_network)[1])

  # Two networks overlap if they are the same once both are cut to the shorter of their prefixes.
  common_bits          = min(local.vpn_bits, tonumber(split("/", var.vpc_cidr)[1]))
  vpc_prefix_in_common = cidrhost("${split("/", var.vpc_cidr)[0]}/${local.common_bits}", 0)
  vpn_prefix_in_common = cidrhost("${split("/", var.vpn_network)[0]}/${local.common_bits}", 0)
}
