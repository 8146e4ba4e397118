"""The report of an audit: one HTML file that needs no network, and a block for the model's card."""

from memattn_jax.report.html.card import model_card
from memattn_jax.report.html.writer import write_report

__all__ = ["model_card", "write_report"]
