"""Videos encoded once and asked later: what is stored of one (`stored`), and jobs of many (`batch`)."""
