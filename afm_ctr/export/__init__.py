"""Exports a trained run as a SavedModel folder for TensorFlow Serving."""

from afm_ctr.export.saved_model import ExportSummary, export_model
from afm_ctr.export.servable import Servable
from afm_ctr.export.validate import Validation, validate_export

__all__ = ["ExportSummary", "Servable", "Validation", "export_model", "validate_export"]
