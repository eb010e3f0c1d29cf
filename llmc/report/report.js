/* report.js - the values under the pointer, in a run's report (report.h); embedded in the page by embed.awk.
 *
 * While the pointer is over a chart, every chart of the page shows a vertical line at the same step, a dot on each
 * curve and the values there. Without this script the page is complete. It uses plot.js.
 *
 * Each drawing is followed by a script element that holds its points as JSON, written by chart_data.h:
 *
 *     box     left, right, top and bottom of the plot area, in units of the drawing
 *     x, y    the first and the last step; the values at the bottom and the top, or their exponents of ten if log is 1
 *     share   1 if the values are percentages
 *     lines   of each curve: x the steps, r the raw values and, if the curve is smoothed, s the smoothed ones
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
(function () {
    /* The charts of the page: d the points as above, svg the drawing, marks the elements under the pointer. */
    var charts = [];

    /* Adds an empty element to a drawing. */
    function make(svg, tag, cls) {
        var e = document.createElementNS(plot.SVG, tag);
        e.setAttribute('class', cls);
        svg.appendChild(e);
        return e;
    }

    /* Sets all attributes that o lists. */
    function put(e, o) {
        for (var k in o) e.setAttribute(k, o[k]);
    }

    /* Returns a value as text of about four digits; a dash if there is none. */
    function say(v, share) {
        if (v == null) return '\u2013';
        if (share) return +(100 * v).toPrecision(4) + '%';
        var a = Math.abs(v);
        return a >= 1e4 ? Math.round(v).toLocaleString('en')
            : a && a < 1e-3 ? v.toExponential(2)
            : String(+v.toPrecision(4));
    }

    /* Collects the charts; one without a finite value has null for its points. Over a chart, the pointer's place
     * becomes u, a fraction of the way along the x axis, and that a step. */
    document.querySelectorAll('figure script').forEach(function (script) {
        var d = JSON.parse(script.textContent);
        if (!d) return;
        var svg = script.previousElementSibling;
        charts.push({d: d, svg: svg, marks: null});
        svg.addEventListener('pointermove', function (ev) {
            var r = svg.getBoundingClientRect(), w = svg.viewBox.baseVal.width, b = d.box;
            var u = ((ev.clientX - r.left) / r.width * w - b[0]) / (b[1] - b[0]);
            show(d.x[0] + Math.max(0, Math.min(1, u)) * (d.x[1] - d.x[0]), svg);
        });
        svg.addEventListener('pointerleave', hide);
    });

    /* Removes the marks of all charts. */
    function hide() {
        charts.forEach(function (c) {
            if (c.marks) c.marks.forEach(function (m) { m.remove(); });
            c.marks = null;
        });
    }

    /* Returns the index of the step in x, which increases, that is nearest to at. */
    function near(x, at) {
        var lo = 0, hi = x.length - 1;
        while (hi - lo > 1) {
            var m = (lo + hi) >> 1;
            if (x[m] < at) lo = m;
            else hi = m;
        }
        return Math.abs(x[lo] - at) <= Math.abs(x[hi] - at) ? lo : hi;
    }

    /* Marks a step in all charts. active is the drawing under the pointer, which also shows the smoothed values. */
    function show(step, active) {
        hide();
        charts.forEach(function (c) {
            /* row counts the lines of text in this chart. */
            /* biome-ignore lint/suspicious/noAssignInExpressions: both are names of the marks that are drawn below */
            var d = c.d, b = d.box, svg = c.svg, m = c.marks = [], row = 0;

            /* X and Y return the place of a step and of a value within the drawing. */
            function X(v) {
                return b[0] + (b[1] - b[0]) * (v - d.x[0]) / (d.x[1] - d.x[0]);
            }
            function Y(v) {
                if (d.log) v = Math.log10(v);
                return b[3] - (b[3] - b[2]) * (v - d.y[0]) / (d.y[1] - d.y[0]);
            }

            /* Curve i has its nearest point at index k. Text is left of the line in the right half of the chart. */
            d.lines.forEach(function (l, i) {
                if (!l.x.length) return;
                var k = near(l.x, step), v = (l.s || l.r)[k], x = X(l.x[k]), right = x > (b[0] + b[1]) / 2;

                /* Adds a line of text: a value after what it is, or the step. */
                function write(v, cls, what) {
                    var t = make(svg, 'text', 'tip ' + cls);
                    put(t, {x: x + (right ? -7 : 7), y: b[2] + 9 + 13 * row++, 'text-anchor': right ? 'end' : 'start'});
                    t.textContent = (what || '') + (cls === 'at' ? v : say(v, d.share));
                    m.push(t);
                }

                /* The first curve draws the vertical line and writes the step above the values. */
                if (!row) {
                    var h = make(svg, 'path', 'hair');
                    put(h, {d: 'M' + x + ' ' + b[2] + 'V' + b[3]});
                    m.push(h);
                    write('step ' + l.x[k], 'at');
                }
                var o = make(svg, 'circle', 'end a' + i);
                put(o, {cx: x, cy: Y(v), r: 3});
                m.push(o);
                write(l.r[k], 'a' + i);
                if (l.s && svg === active) write(l.s[k], 'a' + i, 'smoothed ');
            });
        });
    }
})();
