"""A layout becomes frames, and says which needle each token shows."""

import torch
from torch import Tensor

from vidsieve.evaluation.needles.draws import mix
from vidsieve.evaluation.needles.glyphs import CELL, DIGIT, TILE, glyphs, palette, textures
from vidsieve.evaluation.needles.layout import BALLS, GRID, NOTHING, Layout, Size, centre, diameter

GRAIN = 1 << 16  # entries of the noise table
DARK = 20  # of a digit on its card


def owners(layout: Layout) -> Tensor:
    """Which thing each token shows: int64 (B, T, GRID, GRID).

    The needle's number; one more than the last for the lasting shape; two more for flicker; NOTHING for background.
    """
    size, needles = layout.size, layout.needles
    batch, items = needles.step.shape
    device = needles.step.device
    cell = torch.arange(GRID, device=device)
    block = cell[:, None] // 2 * (GRID // 2) + cell[None] // 2  # (GRID, GRID)
    owner = torch.full((batch, size.steps, GRID, GRID), NOTHING, device=device)
    step = torch.arange(size.steps, device=device)
    place, first, last = layout.flicker.T[..., None]
    during = (step >= first) & (step <= last)
    owner = torch.where(during[..., None, None] & (block == place[..., None, None]), items + 1, owner)
    scene, place = layout.lasting.T[:2, :, None]
    stays = (layout.scene == scene)[..., None, None] & (block == place[..., None, None])
    owner = torch.where(stays, items, owner)
    for item in range(items):
        begin, row, column = (each[:, item, None] for each in (needles.step, needles.row, needles.column))
        during = (step >= begin) & (step < begin + needles.steps[:, item, None]) & (needles.shown[:, item, None] > 0)
        down = (cell >= row) & (cell < row + needles.height[:, item, None])
        right = (cell >= column) & (cell < column + needles.width[:, item, None])
        here = during[..., None, None] & down[:, None, :, None] & right[:, None, None]
        owner = torch.where(here, item, owner)
    return owner


def ball_tokens(layout: Layout, owner: Tensor) -> Tensor:
    """The tokens over which the middle of each ball passes, where nothing covers it: bool (B, BALLS, T, GRID, GRID)."""
    row, column, there = (each[:, :BALLS, :, None, None] for each in centre(layout.movers, layout.size))
    cell = torch.arange(GRID, device=row.device)
    return there & (cell[:, None] == row) & (cell == column) & ~_needle(layout, owner)[:, None]


def _needle(layout: Layout, owner: Tensor) -> Tensor:
    """Tokens that show a needle, and nothing that passes behind it: bool (B, T, GRID, GRID)."""
    return (owner >= 0) & (owner < layout.needles.step.shape[1])


def _spread(x: Tensor, size: Size) -> Tensor:
    """(..., GRID, GRID) -> (..., H, W), every token's value at its pixels."""
    return x.repeat_interleave(size.token, -1).repeat_interleave(size.token, -2)


def render(layout: Layout, owner: Tensor, split: str, numbers: Tensor) -> Tensor:
    """Frames uint8 (B, F, 3, H, W). numbers: int64 (B,), of which the grain of each video is made."""
    size = layout.size
    frame = torch.arange(size.frames, device=owner.device)
    pixels = _background(layout, split, frame)
    grain = _grain(numbers, size, frame)
    pixels = _draw_tokens(pixels, layout, owner, grain)
    free = _spread(~_needle(layout, owner), size).repeat_interleave(2, dim=1)  # (B, F, H, W)
    for mover in reversed(range(layout.movers.first.shape[1])):  # balls last
        pixels = _draw_mover(pixels, layout, mover, frame, free)
    return (pixels + grain[:, :, None]).clamp_(0, 255).to(torch.uint8)


def _background(layout: Layout, split: str, frame: Tensor) -> Tensor:
    """Each scene's colour times its drifting texture: int16 (B, F, 3, H, W)."""
    size, scene = layout.size, layout.scene.repeat_interleave(2, dim=1)  # (B, F)

    def of(value: Tensor) -> Tensor:
        """What a scene's `value` (B, SCENES, ...) is in each frame: (B, F, ...)."""
        index = scene.view(*scene.shape, *[1] * (value.ndim - 2)).expand(-1, -1, *value.shape[2:])
        return value.gather(1, index)

    start = of(layout.offset) + ((of(layout.drift) * frame[:, None]) >> 2)  # (B, F, 2), a quarter pixel a frame
    pixel = torch.arange(size.side, device=frame.device)
    row, column = ((start[..., side, None] + pixel) & (TILE - 1) for side in (0, 1))
    bank = textures(split, frame.device)
    place = (of(layout.texture)[..., None, None] * TILE + row[..., None]) * TILE + column[..., None, :]
    texture = bank.flatten()[place]  # (B, F, H, W)
    shade = of(layout.shade)[..., None, None] + ((of(layout.contrast)[..., None, None] * texture) >> 7)
    colour = palette(frame.device)[of(layout.scene_colour)].to(torch.int16)  # (B, F, 3)
    return (colour[..., None, None] * shade[:, :, None].to(torch.int16)) >> 7


def _grain(numbers: Tensor, size: Size, frame: Tensor) -> Tensor:
    """Sensor noise, alike in all channels: int16 (B, F, H, W), about 5 grey levels."""
    bits = mix(torch.arange(GRAIN, device=frame.device) + (1 << 40))
    table = sum((bits >> shift) & 7 for shift in (8, 16, 24, 32)).to(torch.int16) - 14  # type: ignore[union-attr]
    start = mix(mix(numbers)[:, None] + frame) & (GRAIN - 1)  # (B, F)
    pixel = torch.arange(size.side * size.side, device=frame.device)
    return table[(start[..., None] + pixel) & (GRAIN - 1)].view(*start.shape, size.side, size.side)


def _draw_mover(pixels: Tensor, layout: Layout, mover: int, frame: Tensor, free: Tensor) -> Tensor:
    """A ball is a disc, the others are squares."""
    movers, across = layout.movers, diameter(layout.size)
    pixel = torch.arange(layout.size.side, device=frame.device)
    down, right = (pixel - side[:, mover, :, None] for side in (movers.y, movers.x))  # (B, F, H)
    there = (frame >= movers.first[:, mover, None]) & (frame <= movers.last[:, mover, None])  # (B, F)
    if mover < BALLS:
        # Twice the distance to the middle, so that it is a whole number.
        distance = ((2 * down + 1 - across) ** 2)[..., None] + ((2 * right + 1 - across) ** 2)[..., None, :]
        mask = distance <= across * across
    else:
        mask = ((down >= 0) & (down < across))[..., None] & ((right >= 0) & (right < across))[..., None, :]
    mask = mask & free & there[..., None, None]
    colour = palette(frame.device)[movers.colour[:, mover]].to(pixels.dtype)  # (B, 3)
    return torch.where(mask[:, :, None], colour[:, None, :, None, None], pixels)


def _draw_tokens(pixels: Tensor, layout: Layout, owner: Tensor, grain: Tensor) -> Tensor:
    """Everything that `owners` names, token by token."""
    size, needles = layout.size, layout.needles
    device = owner.device
    _, place, hue = layout.lasting.T[..., None]  # (B, 1) each
    glyph = torch.cat((needles.glyph, layout.shapes[:, size.lasting, None], torch.full_like(place, NOTHING)), dim=1)
    value = torch.cat((palette(device)[needles.colour] * needles.tone[..., None] // 100, palette(device)[hue]), dim=1)
    value = torch.cat((value, torch.zeros_like(value[:, :1])), dim=1)  # (B, I + 2, 3)
    row = torch.cat((needles.row, place // (GRID // 2) * 2, torch.zeros_like(place)), dim=1)
    column = torch.cat((needles.column, place % (GRID // 2) * 2, torch.zeros_like(place)), dim=1)
    two = torch.full_like(place, 2)
    height, width = torch.cat((needles.height, two, two), dim=1), torch.cat((needles.width, two, two), dim=1)
    shown = torch.cat((needles.shown, two + 1, two + 1), dim=1)

    shape = owner.shape
    index = owner.clamp(min=0).flatten(1)

    def of(each: Tensor) -> Tensor:
        """A thing's value (B, I + 2) at the tokens that show it: (B, T, GRID, GRID)."""
        return each.gather(1, index).view(shape)

    cell, dot = torch.arange(GRID, device=device), torch.arange(size.token, device=device)
    # Which dot of its glyph each pixel of a token shows: (B, T, GRID, GRID, token).
    down = ((cell[:, None] - of(row)) * size.token)[..., None] + dot
    right = ((cell - of(column)) * size.token)[..., None] + dot
    down = (down * CELL // (of(height) * size.token)[..., None]).clamp(0, CELL - 1)
    right = (right * CELL // (of(width) * size.token)[..., None]).clamp(0, CELL - 1)
    which = of(glyph)
    bank = glyphs(device).flatten()
    dots = (which.clamp(min=0)[..., None] * CELL + down)[..., None] * CELL + right[..., None, :]
    drawn = bank[dots]  # (B, T, GRID, GRID, token, token)
    card, noise = which >= DIGIT, (owner >= 0) & (which == NOTHING)
    colour = torch.stack([of(channel) for channel in value.unbind(2)], dim=2).to(pixels.dtype)  # (B, T, 3, GRID, GRID)
    on = torch.stack([(of(shown) & bit > 0) & (owner >= 0) for bit in (1, 2)], dim=2)  # (B, T, 2, GRID, GRID)

    def spread(x: Tensor) -> Tensor:
        return _spread(x, size)

    def per_frame(x: Tensor) -> Tensor:
        """(B, T, 2, ...) -> (B, F, ...)."""
        return x.flatten(1, 2)

    mask = drawn.transpose(-3, -2).reshape(*shape[:2], 1, size.side, size.side)  # (B, T, 1, H, W)
    visible = spread(on)
    ink, paper, static = (visible & each for each in (mask, spread(card)[:, :, None], spread(noise)[:, :, None]))
    tint = spread(torch.where(card[:, :, None], DARK, colour))[:, :, None]  # (B, T, 1, 3, H, W)
    ground = spread(colour)[:, :, None]
    tint, ground = (each.expand(-1, -1, 2, -1, -1, -1) for each in (tint, ground))
    pixels = torch.where(per_frame(paper)[:, :, None], per_frame(ground), pixels)
    pixels = torch.where(per_frame(ink & ~static)[:, :, None], per_frame(tint), pixels)
    # Grey noise times a random factor a channel: a hue of its own in each token and frame.
    place = torch.arange(size.frames * 3 * GRID * GRID, device=device).view(size.frames, 3, GRID, GRID)
    gain = ((mix(place + layout.offset[:, 0, 0, None, None, None, None]) & 15) - 7).to(pixels.dtype)
    rough = 128 + spread(gain) * grain[:, :, None]
    return torch.where(per_frame(static)[:, :, None], rough, pixels)
