"""The closed form held against published figures: rows in, predictions with intervals out."""
