"""Numbers as people write them."""


def byte_size(size: int) -> str:
    """A number of bytes in MiB, or GiB from one on."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
