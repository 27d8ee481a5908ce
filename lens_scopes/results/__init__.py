"""What users keep: labelled numbers and how they were obtained. Nothing here knows a model or how numbers are made."""
