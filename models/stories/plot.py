"""Draw log.csv as a small SVG: training loss (nats a token) and validation bits per byte over tokens.

    python plot.py run/log.csv loss.svg
"""
import csv
import sys

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 300, 46, 36


def scale(points, x_max, low, high):
    return [(LEFT + x / x_max * (WIDTH - 2 * LEFT), HEIGHT - BOTTOM - (min(y, high) - low) / (high - low) * (HEIGHT - BOTTOM - 14)) for x, y in points]


def polyline(points, colour):
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def text(x, y, content, colour="#444", anchor="middle"):
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" text-anchor="{anchor}">{content}</text>'


def main(log, out):
    rows = list(csv.DictReader(open(log)))
    x_max = max(int(r["tokens"]) for r in rows)
    train = [(int(r["tokens"]), float(r["train_nats"])) for r in rows]
    valid = [(int(r["tokens"]), float(r["valid_bits_per_byte"])) for r in rows if r["valid_bits_per_byte"]]
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for i in range(6):  # training: 1 to 6 nats, left; validation: 0.6 to 1.6 bits per byte, right
        y = HEIGHT - BOTTOM - i / 5 * (HEIGHT - BOTTOM - 14)
        parts += [f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
                  text(LEFT - 6, y + 4, 1 + i, "#1b6ca8", "end"), text(WIDTH - LEFT + 6, y + 4, f"{0.6 + 0.2 * i:.1f}", "#c4561b", "start")]
    for i in range(5):
        parts.append(text(LEFT + i / 4 * (WIDTH - 2 * LEFT), HEIGHT - 20, f"{x_max * i / 4e6:.1f} M"))
    valid = scale(valid, x_max, 0.6, 1.6)
    parts += [text(WIDTH / 2, HEIGHT - 5, "tokens seen"), text(LEFT, 10, "training loss, nats a token", "#1b6ca8", "start"),
              text(WIDTH - LEFT, 10, "validation, bits a byte", "#c4561b", "end"),
              polyline(scale(train, x_max, 1, 6), "#1b6ca8"), polyline(valid, "#c4561b")]
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="#c4561b"/>' for x, y in valid]
    open(out, "w").write("\n".join(parts + ["</svg>"]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
