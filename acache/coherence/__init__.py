"""What keeps entries valid beyond their own dates: tags, and later the channel between processes."""

from .tags import TagCell, Tags

__all__ = ["TagCell", "Tags"]
