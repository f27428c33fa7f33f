"""Detectron2 projects that evaluate SparK's encoders on detection and segmentation."""
