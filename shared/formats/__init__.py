"""Writers of extractions, one module per format; :mod:`shared.formats.registry` names them all."""
