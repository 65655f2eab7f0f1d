"""``continual wandb-workspace``."""

from argparse import ArgumentParser, Namespace

from continual.errors import UserError


def configure(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("where", metavar="ENTITY/PROJECT", help="a project that holds runs of ours, e.g. lab/continual")


def act(options: Namespace) -> int:
    """Push and tell the address."""
    from continual.trackers import wandb
    from continual.workspace import push

    entity, slash, project = options.where.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise UserError(f"'{options.where}' is not of the form ENTITY/PROJECT, e.g. lab/continual")
    try:
        print(push(entity, project))
    finally:
        wandb.close()
    return 0
