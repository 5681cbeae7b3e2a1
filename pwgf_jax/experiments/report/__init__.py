"""What runs show: tables, figures, certificates of their ends, and the critical points of a landscape."""

__all__ = []
