"""Draw example 4, the deployment on AWS, into assets/cloud-deployment.svg and .png."""

from __future__ import annotations

from drawing import DATA, FRAME, RED, REDIS, SOFT, STORE, WORK, arrow, box, canvas, command, frame, label, save
from matplotlib.axes import Axes

COLUMNS, WIDTH, HEIGHT = (3.95, 6.5, 9.05), 2.3, 1.15  # of the boxes in the three zones
LEFT, RIGHT = 3.8, 11.5  # of the frames around them
PUBLIC, BALANCER, TRITON, REDIS_NODES, MONITORING = 8.2, 6.4, 4.25, 2.1, 0.7  # lower edges of the boxes
INSIDE = 3.5  # lane in which the VPN's traffic goes down
FETCHED = 11.73  # lane in which machines get what they fetch
SERVICES, SERVICE = 12.85, (2.75, 1.1)  # left edge and size of the boxes of Amazon's services
AROUND = 15.95  # lane in which models and images go up


def outside(axes: Axes) -> None:
    """Whoever deploys and asks, and the one way in."""
    box(axes, 0.15, PUBLIC, (1.95, HEIGHT), DATA, "Your laptop", "Terraform, Ansible,\nrecsys")
    arrow(axes, (2.1, PUBLIC + 0.575), (3.5, PUBLIC + 0.575))
    label(axes, 2.18, PUBLIC + 0.8, "WireGuard")
    over = PUBLIC + HEIGHT + 0.65
    arrow(axes, (1.1, PUBLIC + HEIGHT), (1.1, over), (AROUND, over), (AROUND, BALANCER + 0.55), (15.6, BALANCER + 0.55))
    command(axes, 1.25, over + 0.08, "make cloud-publish, docker push")
    for number, text in enumerate(("make cloud-up", "make cloud-vpn", "make cloud-configure", "recsys deploy")):
        command(axes, 0.15, PUBLIC - 0.45 - 0.3 * number, text)
    command(axes, 0.15, PUBLIC - 0.45 - 0.3 * 4, "recsys recommend")


def network(axes: Axes) -> None:
    """Frames of the network, the gateway and the ways in and out."""
    frame(axes, 3.0, 0.2, (9.15, 9.4), DATA)
    axes.text(11.95, PUBLIC + HEIGHT - 0.05, "VPC", weight="bold", size=10, va="center", ha="right")
    frame(axes, 3.2, 0.45, (8.75, 7.3), ("white", DATA[1]))
    axes.text(11.8, 7.53, "private subnets", size=9, color=SOFT, va="center", ha="right")
    for column, zone in zip(COLUMNS, "abc", strict=True):
        axes.text(column + WIDTH / 2, 7.53, f"zone {zone}", size=9, color=SOFT, va="center", ha="center")
    box(axes, 3.5, PUBLIC, (3.6, HEIGHT), WORK, "WireGuard gateway", "UDP 51820: the only port\nopen to the internet")
    box(axes, 7.5, PUBLIC, (3.4, HEIGHT), WORK, "NAT gateways", "the way out, one in each zone")
    arrow(axes, (6.375, PUBLIC), (6.375, BALANCER + 0.8))
    label(axes, 6.5, 7.97, "gRPC, TLS, token")
    axes.plot((INSIDE + 0.1, INSIDE + 0.1), (PUBLIC, MONITORING + 0.5), color="#8d99ae", linewidth=1.8)
    for y, x in ((REDIS_NODES + 0.575, LEFT), (MONITORING + 0.5, COLUMNS[0])):
        arrow(axes, (INSIDE + 0.1, y), (x, y), head=10)
    axes.text(INSIDE - 0.12, 4.9, "Redis, Grafana, SSH", size=9, color=SOFT, va="center", ha="center", rotation=90)


def machines(axes: Axes) -> None:
    """What runs in the three zones."""
    whole = COLUMNS[2] + WIDTH - COLUMNS[0]
    box(axes, COLUMNS[0], BALANCER, (whole, 0.8), WORK, "Load balancer", "internal, gRPC 8001; TLS ends in Triton")
    frame(axes, LEFT, TRITON - 0.15, (RIGHT - LEFT, 1.75), FRAME)
    label(axes, LEFT + 0.2, TRITON + 1.38, "Auto Scaling group, 1 to 3 machines")
    frame(axes, LEFT, REDIS_NODES - 0.15, (RIGHT - LEFT, 1.7), STORE)
    axes.text(
        RIGHT - 0.2,
        REDIS_NODES + 1.35,
        "Redis 8 or Redis Enterprise",
        weight="bold",
        size=10,
        va="center",
        ha="right",
        color=RED,
    )
    standalone = ("6379: written to", "6379: copy", "6379: copy")
    for number, (column, text) in enumerate(zip(COLUMNS, standalone, strict=True), start=1):
        middle = column + WIDTH / 2
        box(axes, column, TRITON, (WIDTH, HEIGHT), WORK, "Triton", "GPU; models from S3,\nimage from ECR")
        box(
            axes,
            column,
            REDIS_NODES,
            (WIDTH, HEIGHT),
            REDIS,
            f"redis-{number}",
            f"{text}\n6380, 6381: cluster",
        )
        arrow(axes, (middle, BALANCER), (middle, TRITON + 1.6))
        arrow(axes, (middle, REDIS_NODES + 1.55), (middle, TRITON - 0.15))
    box(
        axes,
        COLUMNS[0],
        MONITORING,
        (whole, 1.0),
        WORK,
        "Prometheus, Alertmanager, Grafana",
        "one machine; asks all others for their metrics; Grafana on 3000",
    )


def services(axes: Axes) -> None:
    """What the machines use of Amazon's."""
    middle = TRITON + 0.725
    boxes = {
        PUBLIC + 0.025: ("Route 53", "private zone:\nredis-1, triton, grafana, …"),
        BALANCER: ("S3, ECR", "models, playbooks;\nTriton's image"),
        TRITON + 0.175: ("CloudWatch", "time that requests\nwait in Triton"),
        REDIS_NODES: ("Secrets Manager", "passwords, token, keys;\nnone in Terraform's state"),
        0.65: ("SSM parameters", "authority's certificate,\nVPN's public key"),
    }
    for y, (title, text) in boxes.items():
        box(axes, SERVICES, y, SERVICE, DATA, title, text)
    for y, end in ((BALANCER + 0.55, TRITON + 1.35), (REDIS_NODES + 0.55, TRITON + 0.1)):
        arrow(axes, (SERVICES, y), (FETCHED, y), (FETCHED, end), (RIGHT, end), head=10)
    arrow(axes, (RIGHT, middle + 0.25), (SERVICES, middle + 0.25))
    arrow(axes, (SERVICES, middle - 0.25), (RIGHT, middle - 0.25))
    label(axes, 12.25, middle + 0.42, "waits")
    label(axes, 12.25, middle - 0.42, "scales")


def draw() -> None:
    """Write both files."""
    figure, axes = canvas("cloud-deployment", 16.15, 0.1, 10.4)
    network(axes)
    outside(axes)
    machines(axes)
    services(axes)
    save(figure, "cloud-deployment")


if __name__ == "__main__":
    draw()
