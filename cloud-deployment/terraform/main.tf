locals {
  tags = merge(var.tags, {
    Project     = var.name
    Environment = var.environment
    ManagedBy   = "terraform"
  })

  zones = length(var.zones) > 0 ? var.zones : slice(
    sort(data.aws_availability_zones.here.names), 0, min(3, length(data.aws_availability_zones.here.names))
  )

  debian_ami = var.debian_ami != "" ? var.debian_ami : data.aws_ami.debian.id
  triton_ami = var.triton_ami != "" ? var.triton_ami : data.aws_ami.debian.id
  redis_ami = (
    var.redis_ami != "" ? var.redis_ami : var.redis_engine == "oss" ? data.aws_ami.debian.id : data.aws_ami.ubuntu.id
  )

  triton_image = (
    var.triton_image != "" ? var.triton_image : "${module.assets.repository_url}:${var.triton_image_tag}"
  )

  # What Ansible must know. No secrets: these it reads from Secrets Manager.
  ansible = {
    recsys_name          = var.name
    recsys_region        = var.region
    recsys_dns_zone      = var.dns_zone
    recsys_vpc_cidr      = var.vpc_cidr
    recsys_dns_server    = cidrhost(var.vpc_cidr, 2)
    recsys_assets_bucket = module.assets.bucket
    redis_engine         = var.redis_engine
    triton_image         = local.triton_image
    triton_asg           = local.triton_asg
    triton_model         = var.triton_model
    vpn_port             = var.vpn_port
    vpn_network          = var.vpn_network
    vpn_address          = cidrhost(var.vpn_network, 1)
    vpn_peers            = var.vpn_peers
  }

  # A plain string, so that the machines can be told their group before it exists.
  triton_asg = "${var.name}-triton"

  # Triton's machines are told nothing about the VPN: a new peer must not replace them.
  first_boot_vars = {
    redis      = ""
    monitoring = ""
    vpn        = jsonencode(local.ansible)
    triton     = jsonencode({ for key, value in local.ansible : key => value if !startswith(key, "vpn_") })
  }

  first_boot = {
    for role, vars in local.first_boot_vars : role => templatefile("${path.module}/templates/first-boot.sh.tftpl", {
      role           = role
      region         = var.region
      self_configure = vars != ""
      vars           = vars
      bucket         = module.assets.bucket
      playbooks_hash = module.assets.playbooks_hash
    })
  }
}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"] # Debian

  filter {
    name   = "name"
    values = ["debian-13-amd64-*"]
  }

  filter {
    name   = "architecture"
    values = ["x86_64"]
  }
}

data "aws_ami" "ubuntu" {
  most_recent = true
  owners      = ["099720109477"] # Canonical

  filter {
    name   = "name"
    values = ["ubuntu/images/hvm-ssd*/ubuntu-jammy-22.04-amd64-server-*"]
  }

  filter {
    name   = "architecture"
    values = ["x86_64"]
  }
}

# Of an image that someone chose, the name of its root disk must be asked for.
data "aws_ami" "triton" {
  filter {
    name   = "image-id"
    values = [local.triton_ami]
  }
}

resource "aws_key_pair" "ansible" {
  key_name   = "${var.name}-ansible"
  public_key = trimspace(var.ssh_public_key)
  tags       = { Name = "${var.name}-ansible" }
}

module "network" {
  source = "./modules/network"

  name                = var.name
  region              = var.region
  cidr                = var.vpc_cidr
  zones               = local.zones
  nat_per_zone        = var.nat_per_zone
  interface_endpoints = var.interface_endpoints
  flow_log_days       = var.flow_log_days
}

module "assets" {
  source = "./modules/assets"

  name          = var.name
  region        = var.region
  playbooks     = var.playbooks
  force_destroy = var.bucket_force_destroy
}

module "secrets" {
  source = "./modules/secrets"

  name          = var.name
  recovery_days = var.secret_recovery_days
  secrets = {
    ca             = "Private key of the certificate authority; only whoever runs Ansible reads it"
    redis-admin    = "Password of Redis' administrator, and of Redis Enterprise's cluster"
    redis-server   = "Password with which Triton reads from Redis"
    redis-deploy   = "Password with which deployments write to Redis"
    redis-events   = "Password with which live events are written to Redis"
    redis-exporter = "Password with which the exporter reads Redis' statistics"
    triton-token   = "Token that Triton's clients send"
    triton-tls     = "Triton's TLS certificate and key"
    grafana-admin  = "Password of Grafana's administrator"
  }
}

module "vpn" {
  source = "./modules/vpn"

  name                = var.name
  instance_type       = var.vpn_instance_type
  ami                 = local.debian_ami
  key_name            = aws_key_pair.ansible.key_name
  vpc_id              = module.network.vpc_id
  subnet_id           = module.network.public_subnet_ids_online[0]
  port                = var.vpn_port
  user_data           = local.first_boot.vpn
  playbooks_policy    = module.assets.playbooks_policy
  monitoring_group_id = module.monitoring.security_group_id
}

module "monitoring" {
  source = "./modules/monitoring"

  name                = var.name
  instance_type       = var.monitoring_instance_type
  ami                 = local.debian_ami
  key_name            = aws_key_pair.ansible.key_name
  vpc_id              = module.network.vpc_id
  subnet_id           = module.network.private_subnet_ids_online[0]
  zone                = local.zones[0]
  data_gib            = var.monitoring_data_gib
  kms_key_arn         = var.kms_key_arn
  user_data           = local.first_boot.monitoring
  vpn_group_id        = module.vpn.security_group_id
  deletion_protection = var.deletion_protection
}

module "redis" {
  source = "./modules/redis"

  name                = var.name
  engine              = var.redis_engine
  nodes               = var.redis_nodes
  instance_type       = var.redis_instance_type
  ami                 = local.redis_ami
  key_name            = aws_key_pair.ansible.key_name
  vpc_id              = module.network.vpc_id
  subnet_ids          = module.network.private_subnet_ids_online
  zones               = local.zones
  data_gib            = var.redis_data_gib
  snapshots_kept      = var.redis_snapshots_kept
  kms_key_arn         = var.kms_key_arn
  user_data           = local.first_boot.redis
  triton_group_id     = module.triton.security_group_id
  vpn_group_id        = module.vpn.security_group_id
  monitoring_group_id = module.monitoring.security_group_id
  deletion_protection = var.deletion_protection
}

module "triton" {
  source = "./modules/triton"

  name                = var.name
  group_name          = local.triton_asg
  instance_type       = var.triton_instance_type
  ami                 = local.triton_ami
  root_device_name    = data.aws_ami.triton.root_device_name
  key_name            = aws_key_pair.ansible.key_name
  vpc_id              = module.network.vpc_id
  lb_subnet_ids       = module.network.private_subnet_ids
  subnet_ids          = module.network.private_subnet_ids_online
  min_size            = var.triton_min_size
  max_size            = var.triton_max_size
  start_size          = var.triton_start_size
  queue_target        = var.triton_queue_target
  disk_gib            = var.triton_disk_gib
  user_data           = local.first_boot.triton
  vpn_group_id        = module.vpn.security_group_id
  monitoring_group_id = module.monitoring.security_group_id
  client_cidrs        = var.triton_client_cidrs
  deletion_protection = var.deletion_protection
  assets_policy       = module.assets.triton_policy
  ca_certificate_arn  = module.secrets.ca_certificate_arn
  secret_arns = [
    for secret in ["redis-server", "triton-token", "triton-tls"] : module.secrets.arns[secret]
  ]
  tags = local.tags
}

module "dns" {
  source = "./modules/dns"

  zone           = var.dns_zone
  vpc_id         = module.network.vpc_id
  redis_ips      = module.redis.private_ips
  monitoring_ip  = module.monitoring.private_ip
  vpn_private_ip = module.vpn.private_ip
  vpn_public_ip  = module.vpn.public_ip
  public_zone_id = var.vpn_public_zone_id
  triton_lb = {
    dns_name = module.triton.lb_dns_name
    zone_id  = module.triton.lb_zone_id
  }
}
