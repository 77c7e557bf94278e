"""The vision tower, made fast from outside: which tower a model has, its layout, its attention, its fused parts."""
