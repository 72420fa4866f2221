"""Rich values as users pass them (images, figures, tables, histograms, matrices, curves) as files and plain lists.

Apart from `plain.py` because these values come from array, picture and data frame libraries. Each is recognised by its
protocol, and its library is used only when the value itself comes from it. It happens on the training thread, at the
call: afterwards the user may change the value, and a value that cannot be logged is refused where it was given.
"""

from trackhub.values.numbers import Binned, confusion_matrix_of, histogram_of, roc_curve_of
from trackhub.values.pictures import EncodedFile, EncodedImage, encode_figure, encode_image
from trackhub.values.tables import EncodedTable, encode_table

__all__ = [
    "Binned",
    "EncodedFile",
    "EncodedImage",
    "EncodedTable",
    "confusion_matrix_of",
    "encode_figure",
    "encode_image",
    "encode_table",
    "histogram_of",
    "roc_curve_of",
]
