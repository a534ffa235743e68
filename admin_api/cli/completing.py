"""Completion of product names: the service is asked, for a moment, and silence is no error."""

from __future__ import annotations

import click

_SECONDS = 2.0
_OFFERED = 50


def product_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of products that begin so, as the shell is to offer them."""
    from admin_api.cli.client import Client
    from admin_api.cli.failures import Failure

    # The group's own code has not run: its options are all that there is.
    told = context.find_root().params
    client = Client(told["url"], told["token_file"], told["ca_file"], quiet=True)
    query = {"name_prefix": incomplete or None, "limit": _OFFERED}
    try:
        page = client.json("GET", "/v1/products", query=query, timeout=_SECONDS)
    except Failure:
        return []
    return [product["name"] for product in page["products"]]
