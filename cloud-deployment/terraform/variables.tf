# Required: ssh_public_key, vpn_peers, playbooks. Everything else has a default.
# What costs most: triton_instance_type with triton_max_size, redis_instance_type with redis_nodes, redis_data_gib,
# nat_per_zone and interface_endpoints.

# --- What it is called and where it stands ---

variable "name" {
  description = "Name of the deployment; starts the name of everything, so it must be unique in the account and region."
  type        = string
  default     = "recsys"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{1,18}[a-z0-9]$", var.name))
    error_message = "name: set 3 to 20 lower-case letters, digits and dashes, a letter first and no dash at the end; it becomes part of DNS and bucket names."
  }
}

variable "environment" {
  description = "What the deployment is for, such as production or staging; only a tag."
  type        = string
  default     = "production"

  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9 _.:/=+@-]{0,63}$", var.environment))
    error_message = "environment: set 1 to 64 characters that AWS allows in tags, such as production."
  }
}

variable "tags" {
  description = "More tags for everything."
  type        = map(string)
  default     = {}

  validation {
    condition = length(setintersection(
      [for key in keys(var.tags) : lower(key)], ["name", "project", "environment", "managedby", "role"]
    )) == 0
    error_message = "tags: leave out Name, Project, Environment, ManagedBy and Role, which are set already; use the variables name and environment."
  }
}

variable "region" {
  description = "AWS region."
  type        = string
  default     = "eu-central-1"

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: set the code of an AWS region, such as eu-central-1."
  }
}

variable "zones" {
  description = "Availability zones to spread over. Empty: the first three of the region."
  type        = list(string)
  default     = []

  validation {
    condition     = length(distinct(var.zones)) == length(var.zones) && length(var.zones) <= 6
    error_message = "zones: set up to six different availability zones, or none for the first three of the region."
  }
}

# --- Network ---

variable "vpc_cidr" {
  description = "Addresses of the VPC, /16 to /20."
  type        = string
  default     = "10.20.0.0/16"

  validation {
    condition = (
      can(cidrnetmask(var.vpc_cidr))
      && try(cidrhost(var.vpc_cidr, 0) == split("/", var.vpc_cidr)[0], false)
      && contains(range(16, 21), try(tonumber(split("/", var.vpc_cidr)[1]), 0))
    )
    error_message = "vpc_cidr: set an IPv4 network of /16 to /20 by its first address, such as 10.20.0.0/16."
  }
}

variable "nat_per_zone" {
  description = "A NAT gateway in every zone, so that a zone's failure leaves the others online. false: one, which is cheaper."
  type        = bool
  default     = true
}

variable "interface_endpoints" {
  description = "Reach AWS's services from inside the VPC, not through NAT. false is cheaper as long as little is pulled."
  type        = bool
  default     = true
}

variable "flow_log_days" {
  description = "Days for which the VPC's flow logs are kept in CloudWatch. 0: no flow logs."
  type        = number
  default     = 30

  validation {
    condition     = contains([0, 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731], var.flow_log_days)
    error_message = "flow_log_days: set 0 or what CloudWatch offers: 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545 or 731."
  }
}

variable "dns_zone" {
  description = "Private DNS zone of the VPC: redis.<zone>, triton.<zone> and so on."
  type        = string
  default     = "recsys.internal"

  validation {
    condition     = can(regex("^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\\.)+[a-z]{2,63}$", var.dns_zone))
    error_message = "dns_zone: set a domain name in lower case without a dot at the end, such as recsys.internal."
  }
}

# --- Access ---

variable "ssh_public_key" {
  description = "OpenSSH public key of whoever runs Ansible: the text of a file such as ~/.ssh/id_ed25519.pub."
  type        = string
  default     = ""

  validation {
    condition = can(regex(
      "^(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521)) AAAA[A-Za-z0-9+/]{60,}={0,3}( [^\\n]*)?$",
      trimspace(var.ssh_public_key)
    ))
    error_message = "ssh_public_key: set the text of your OpenSSH public key (ed25519, rsa or ecdsa), such as the content of ~/.ssh/id_ed25519.pub; ssh-keygen -t ed25519 makes one."
  }
}

variable "vpn_peers" {
  description = "Who may enter the VPN: a name, the WireGuard public key (wg pubkey) and an address of vpn_network for each."
  type = list(object({
    name       = string
    public_key = string
    address    = string
  }))
  default = []

  validation {
    condition     = length(var.vpn_peers) >= 1 && length(var.vpn_peers) <= 64
    error_message = "vpn_peers: set 1 to 64 peers; the VPN is the only way in. `wg genkey | tee private.key | wg pubkey` makes a pair of keys."
  }

  validation {
    condition     = alltrue([for peer in var.vpn_peers : can(regex("^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$", peer.name))])
    error_message = "vpn_peers: set each name to 1 to 32 letters, digits, dots, dashes and underscores."
  }

  validation {
    condition = alltrue([
      for peer in var.vpn_peers : can(regex("^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$", peer.public_key))
    ])
    error_message = "vpn_peers: set each public_key to what `wg pubkey` prints, 44 characters with = at the end."
  }

  validation {
    condition     = length(distinct(var.vpn_peers[*].address)) == length(var.vpn_peers)
    error_message = "vpn_peers: set another address for each peer; one is there twice."
  }

  validation {
    condition = (
      length(distinct(var.vpn_peers[*].name)) == length(var.vpn_peers)
      && length(distinct(var.vpn_peers[*].public_key)) == length(var.vpn_peers)
    )
    error_message = "vpn_peers: set another name and another public_key for each peer; one is there twice."
  }
}

variable "vpn_network" {
  description = "Addresses inside the VPN, /16 to /28; the first one is the gateway's."
  type        = string
  default     = "10.99.0.0/24"

  validation {
    condition = (
      can(cidrnetmask(var.vpn_network))
      && try(cidrhost(var.vpn_network, 0) == split("/", var.vpn_network)[0], false)
      && contains(range(16, 29), try(tonumber(split("/", var.vpn_network)[1]), 0))
    )
    error_message = "vpn_network: set an IPv4 network of /16 to /28 by its first address, such as 10.99.0.0/24."
  }
}

variable "vpn_port" {
  description = "UDP port of the VPN, the only one open to the internet."
  type        = number
  default     = 51820

  validation {
    condition     = var.vpn_port == floor(var.vpn_port) && var.vpn_port >= 1024 && var.vpn_port <= 65535
    error_message = "vpn_port: set a port from 1024 to 65535, such as 51820."
  }
}

variable "vpn_public_zone_id" {
  description = "Id of a public Route 53 zone; the VPN is then vpn.<its name> for its peers. Empty: they use its address."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(Z[A-Z0-9]{1,31})?$", var.vpn_public_zone_id))
    error_message = "vpn_public_zone_id: set the id of a public Route 53 zone, such as Z0123456789ABCDEFGHIJ, or nothing."
  }
}

variable "vpn_instance_type" {
  description = "Instance type of the VPN gateway."
  type        = string
  default     = "t3.micro"
}

# --- Redis ---

variable "redis_engine" {
  description = "Which Redis: oss (Redis 8 on Debian 13) or enterprise (on Ubuntu 22.04; needs a licence beyond its trial). Decide before the first apply."
  type        = string
  default     = "oss"

  validation {
    condition     = contains(["oss", "enterprise"], var.redis_engine)
    error_message = "redis_engine: set oss or enterprise."
  }
}

variable "redis_nodes" {
  description = "Number of Redis nodes. Odd, so that a majority can always be told from a minority."
  type        = number
  default     = 3

  validation {
    condition     = var.redis_nodes >= 3 && var.redis_nodes <= 21 && var.redis_nodes % 2 == 1
    error_message = "redis_nodes: set an odd number from 3 to 21: of an even number no half could decide anything, and a zone holds 7 apart from each other."
  }
}

variable "redis_instance_type" {
  description = "Instance type of the Redis nodes. Its memory holds the data and as much again while Redis saves it."
  type        = string
  default     = "r7i.large"
}

variable "redis_data_gib" {
  description = "Size of each Redis node's data volume in GiB, best three times the memory. It can grow later, never shrink."
  type        = number
  default     = 100

  validation {
    condition = (
      var.redis_data_gib == floor(var.redis_data_gib)
      && var.redis_data_gib >= 10 && var.redis_data_gib <= 16384
    )
    error_message = "redis_data_gib: set a whole number of GiB from 10 to 16384."
  }
}

variable "redis_snapshots_kept" {
  description = "Daily snapshots kept of each Redis data volume. 0: none, where a backup tool of your own takes them."
  type        = number
  default     = 7

  validation {
    condition = (
      var.redis_snapshots_kept == floor(var.redis_snapshots_kept)
      && var.redis_snapshots_kept >= 0 && var.redis_snapshots_kept <= 1000
    )
    error_message = "redis_snapshots_kept: set a whole number from 0 to 1000."
  }
}

variable "redis_ami" {
  description = "Machine image of the Redis nodes. Empty: the newest Debian 13, or Ubuntu 22.04 for enterprise, on the first apply."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(ami-[0-9a-f]{8,17})?$", var.redis_ami))
    error_message = "redis_ami: set the id of a machine image, such as ami-0123456789abcdef0, or nothing."
  }
}

# --- Triton ---

variable "triton_model" {
  description = "What Triton serves: multi-stage (recommendations on demand) or large-scale (the DLRM with its parameter server)."
  type        = string
  default     = "multi-stage"

  validation {
    condition     = contains(["multi-stage", "large-scale"], var.triton_model)
    error_message = "triton_model: set multi-stage or large-scale."
  }
}

variable "triton_image_tag" {
  description = "Tag of Triton's image in the registry that is made here. Tags can't be overwritten there: push a new one."
  type        = string
  default     = "v1"

  validation {
    condition     = can(regex("^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$", var.triton_image_tag))
    error_message = "triton_image_tag: set the tag of an image, such as v1."
  }
}

variable "triton_image" {
  description = "Whole name of Triton's image, to take it from another registry. Empty: triton_image_tag from the one made here."
  type        = string
  default     = ""
}

variable "triton_instance_type" {
  description = "Instance type of the Triton machines, with an NVIDIA GPU. Sets most of the cost."
  type        = string
  default     = "g6.xlarge"
}

variable "triton_min_size" {
  description = "Fewest Triton machines. 0 only until the first image is pushed."
  type        = number
  default     = 1

  validation {
    condition     = var.triton_min_size >= 0 && var.triton_min_size == floor(var.triton_min_size)
    error_message = "triton_min_size: set a whole number from 0 on."
  }
}

variable "triton_max_size" {
  description = "Most Triton machines."
  type        = number
  default     = 3

  validation {
    condition     = var.triton_max_size >= 1 && var.triton_max_size == floor(var.triton_max_size)
    error_message = "triton_max_size: set a whole number from 1 on."
  }
}

variable "triton_start_size" {
  description = "Triton machines to start with; later, load decides."
  type        = number
  default     = 1

  validation {
    condition     = var.triton_start_size >= 0 && var.triton_start_size == floor(var.triton_start_size)
    error_message = "triton_start_size: set a whole number from 0 on."
  }
}

variable "triton_queue_target" {
  description = "Microseconds that a request may wait in Triton on average; machines are added above, removed well below."
  type        = number
  default     = 2000

  validation {
    condition     = var.triton_queue_target > 0
    error_message = "triton_queue_target: set a number of microseconds above 0."
  }
}

variable "triton_client_cidrs" {
  description = "Private networks whose machines may call Triton by gRPC, such as the VPC's own or a peered one. Empty: only the VPN."
  type        = list(string)
  default     = []

  validation {
    condition = alltrue([
      for cidr in var.triton_client_cidrs :
      can(cidrnetmask(cidr)) && can(regex("^(10\\.|192\\.168\\.|172\\.(1[6-9]|2[0-9]|3[01])\\.|100\\.(6[4-9]|[7-9][0-9]|1[01][0-9]|12[0-7])\\.)", cidr))
    ])
    error_message = "triton_client_cidrs: set private IPv4 networks only, such as 10.20.0.0/16; Triton is not for the internet."
  }
}

variable "triton_disk_gib" {
  description = "Size of each Triton machine's disk in GiB: drivers, the image, models."
  type        = number
  default     = 100

  validation {
    condition = (
      var.triton_disk_gib == floor(var.triton_disk_gib)
      && var.triton_disk_gib >= 30 && var.triton_disk_gib <= 16384
    )
    error_message = "triton_disk_gib: set a whole number of GiB from 30 to 16384."
  }
}

variable "triton_ami" {
  description = "Machine image of the Triton machines. Empty: the newest Debian 13 at every apply, which then replaces them one by one."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(ami-[0-9a-f]{8,17})?$", var.triton_ami))
    error_message = "triton_ami: set the id of a machine image, such as ami-0123456789abcdef0, or nothing."
  }
}

# --- Monitoring ---

variable "monitoring_instance_type" {
  description = "Instance type of the machine with Prometheus and Grafana."
  type        = string
  default     = "t3.medium"
}

variable "monitoring_data_gib" {
  description = "Size of the monitoring's data volume in GiB. It can grow later, never shrink."
  type        = number
  default     = 50

  validation {
    condition = (
      var.monitoring_data_gib == floor(var.monitoring_data_gib)
      && var.monitoring_data_gib >= 10 && var.monitoring_data_gib <= 16384
    )
    error_message = "monitoring_data_gib: set a whole number of GiB from 10 to 16384."
  }
}

variable "debian_ami" {
  description = "Machine image of the VPN gateway and of the monitoring. Empty: the newest Debian 13 on the first apply."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(ami-[0-9a-f]{8,17})?$", var.debian_ami))
    error_message = "debian_ami: set the id of a machine image, such as ami-0123456789abcdef0, or nothing."
  }
}

# --- Assets, secrets, safety ---

variable "playbooks" {
  description = "Path of ansible.tar.gz, the packed playbooks that Triton's and the VPN's machines configure themselves with."
  type        = string
  default     = ""

  validation {
    condition     = try(fileexists(var.playbooks), false)
    error_message = "playbooks: set the path of ansible.tar.gz; there is no such file. Pack the playbooks first: make cloud-plan does."
  }
}

variable "kms_key_arn" {
  description = "ARN of your own KMS key for the volumes of Redis and of the monitoring. Empty: the account's key for EBS."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.kms_key_arn))
    error_message = "kms_key_arn: set the ARN of a KMS key (arn:aws:kms:...:key/...), or nothing."
  }
}

variable "secret_recovery_days" {
  description = "Days for which a deleted secret can be restored. 0: gone at once, for environments that come and go."
  type        = number
  default     = 30

  validation {
    condition     = contains(concat([0], range(7, 31)), var.secret_recovery_days)
    error_message = "secret_recovery_days: set 0, or 7 to 30."
  }
}

variable "bucket_force_destroy" {
  description = "Let terraform destroy delete the bucket although models are in it."
  type        = bool
  default     = false
}

variable "deletion_protection" {
  description = "Refuse to delete the load balancer and the machines with data, and take a last snapshot of data volumes. Apply with false before terraform destroy."
  type        = bool
  default     = true
}
