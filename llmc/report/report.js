/* report.js - the values under the pointer and other axes, in a run's report (report.h); embedded in the page by embed.awk.
 *
 * While the pointer is over a chart, every chart of the page shows a vertical line at the same step, a dot on each
 * curve and the values there. The controls (report_controls.h) draw all charts by tokens or time, or with logarithmic
 * axes. Without this script the page is complete. It uses plot.js.
 *
 * Each drawing is followed by a script element that holds its points as JSON, written by chart_data.h:
 *
 *     box     left, right, top and bottom of the plot area, in units of the drawing
 *     x, y    the first and the last step; the values at the bottom and the top, or their exponents of ten if log is 1
 *     share   1 if the values are percentages
 *     lines   of each curve: x the steps, r the raw values and, if the curve is smoothed, s the smoothed ones; low and
 *             high the edges of a band
 *
 * A comment has lines of its own: it is left out of the page, like the indentation.
 */
(function () {
    /* The charts of the page: d the points as above, svg the drawing, marks the elements under the pointer. */
    var charts = [];
    /* The controls; the steps with their tokens and times; what x is, and whether y is logarithmic. */
    var form = document.getElementById('controls'), table = null, mode = 'step', logarithmic = false;

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

    /* Returns the value of the list `to` at the place that v has in `from`, which increases; null: not known. */
    function between(from, to, v) {
        var i = 0, last = from.length - 1;
        while (i < last && from[i + 1] < v) i++;
        if (last < 0 || from[i] == null || to[i] == null) return null;
        if (i === last || v <= from[i]) return to[i];
        if (to[i + 1] == null) return null;
        return to[i] + (to[i + 1] - to[i]) * Math.min(1, (v - from[i]) / (from[i + 1] - from[i]));
    }

    /* Returns the place of a step on the x axis, and the step at a place. */
    function place(step) {
        return mode === 'step' ? step : between(table.step, table[mode], step);
    }
    function stepAt(x) {
        return mode === 'step' ? x : between(table[mode], table.step, x);
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
        var c = {d: d, svg: svg, marks: null, x: d.x, y: d.y, log: d.log, nodes: Array.prototype.slice.call(svg.childNodes)};
        charts.push(c);
        svg.addEventListener('pointermove', function (ev) {
            var r = svg.getBoundingClientRect(), w = svg.viewBox.baseVal.width, b = d.box;
            var u = ((ev.clientX - r.left) / r.width * w - b[0]) / (b[1] - b[0]);
            show(stepAt(c.x[0] + Math.max(0, Math.min(1, u)) * (c.x[1] - c.x[0])), svg);
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
                return b[0] + (b[1] - b[0]) * (place(v) - c.x[0]) / (c.x[1] - c.x[0]);
            }
            function Y(v) {
                if (c.log) v = Math.log10(v);
                return b[3] - (b[3] - b[2]) * (v - c.y[0]) / (c.y[1] - c.y[0]);
            }

            /* Curve i has its nearest point at index k. Text is left of the line in the right half of the chart. */
            d.lines.forEach(function (l, i) {
                if (!l.x.length || !c.y || step === null) return;
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
                if (v != null && (!c.log || v > 0)) {
                    var o = make(svg, 'circle', 'end a' + i);
                    put(o, {cx: x, cy: Y(v), r: 3});
                    m.push(o);
                }
                write(l.r[k], 'a' + i);
                if (l.s && svg === active) write(l.s[k], 'a' + i, 'smoothed ');
            });
        });
    }

    /* ---- other axes ---- */

    /* Returns the points of a curve's values that can be drawn. */
    function points(c, line, values) {
        return line.x.map(function (x, i) {
            var v = values[i];
            return [place(x), v == null ? v : Math.max(-1e150, Math.min(1e150, v))];
        }).filter(function (p) {
            return p[0] != null && p[1] != null && (!c.log || p[1] > 0);
        });
    }

    /* Sets a chart's ranges; y becomes null if there is nothing to draw. */
    function range(c) {
        var d = c.d, all = [];
        c.x = [place(d.x[0]), place(d.x[1])];
        c.log = d.log || logarithmic ? 1 : 0;
        c.y = d.y;
        d.lines.forEach(function (l) {
            [l.r, l.low, l.high].forEach(function (values) { if (values) all.push(points(c, l, values)); });
        });
        var y = plot.extent(all, 1);
        if (!y || c.x[0] === null || c.x[1] === null) c.y = null;
        else if (c.log !== d.log) {
            c.y = [Math.floor(Math.log10(y[0]) + 1e-9), Math.ceil(Math.log10(y[1]) - 1e-9)];
            if (c.y[0] === c.y[1]) c.y[1]++;
        }
        if (c.x[0] === c.x[1]) c.x = [c.x[0] - 1, c.x[0] + 1];
    }

    /* Adds an element with attributes, and perhaps a text. */
    function add(svg, tag, cls, o, text) {
        var e = make(svg, tag, cls);
        put(e, o);
        if (text !== undefined) e.textContent = text;
    }

    /* Returns a value as text of three digits, for the end of a curve. */
    function short(v, share) {
        var a = Math.abs(share ? 100 * v : v);
        if (share) return +(100 * v).toPrecision(3) + '%';
        return a >= 1e7 || (a && a < 1e-3) ? v.toExponential(1)
            : a >= 1e4 ? +(v / 1e3).toPrecision(3) + 'k'
            : String(+v.toPrecision(3));
    }

    function axes(c, X, Y, texts) {
        var b = c.d.box, low = c.log ? Math.pow(10, c.y[0]) : c.y[0], high = c.log ? Math.pow(10, c.y[1]) : c.y[1];
        plot.ticks(low, high, 5, c.log).forEach(function (v) {
            add(c.svg, 'path', 'grid', {d: 'M' + b[0] + ' ' + Y(v).toFixed(1) + 'H' + b[1]});
            add(c.svg, 'text', 'tick', {x: b[0] - 5, y: Y(v) + 3.2, 'text-anchor': 'end'}, plot.say(v, c.d.share));
        });
        plot.ticks(c.x[0], c.x[1], b[1] > 400 ? 8 : 4, false).forEach(function (v) {
            add(c.svg, 'path', 'grid base', {d: 'M' + X(v).toFixed(1) + ' ' + b[3] + 'v3'});
            add(c.svg, 'text', 'tick', {x: X(v), y: b[3] + 14, 'text-anchor': 'middle'}, plot.say(v));
        });
        add(c.svg, 'text', 'axis', {x: c.svg.viewBox.baseVal.width, y: b[3] + 14, 'text-anchor': 'end'}, mode === 'time' ? 's' : mode);
        add(c.svg, 'text', 'axis', {x: b[0] - 5, y: 12}, texts.unit + (c.log ? ', logarithmic' : ''));
    }

    /* What the drawing of the page calls its curves and their unit. */
    function texts(c) {
        var names = [], unit = '';
        c.nodes.forEach(function (e) {
            var cls = e.getAttribute('class') || '';
            if (cls.indexOf('name ') === 0) names.push(e.textContent);
            if (cls === 'axis') unit = e.textContent.replace(', logarithmic', '');
        });
        return {names: names, unit: unit};
    }

    function draw(c) {
        var d = c.d, b = d.box, svg = c.svg, said = texts(c), taken = [];
        while (svg.firstChild) svg.removeChild(svg.firstChild);
        range(c);
        if (mode === 'step' && !logarithmic) {
            c.nodes.forEach(function (e) { svg.appendChild(e); });
            return;
        }
        if (!c.y) {
            add(svg, 'text', 'axis', {x: (b[0] + b[1]) / 2, y: (b[2] + b[3]) / 2, 'text-anchor': 'middle'}, 'no value to draw');
            return;
        }
        var X = plot.scale(c.x[0], c.x[1], b[0], b[1], false);
        var Y = plot.scale(c.log ? Math.pow(10, c.y[0]) : c.y[0], c.log ? Math.pow(10, c.y[1]) : c.y[1], b[3], b[2], c.log);
        axes(c, X, Y, said);
        d.lines.forEach(function (l, i) {
            var low = points(c, l, l.low || l.r), high = points(c, l, l.high || l.r), raw = points(c, l, l.r), main = raw;
            if ((l.low || l.high) && low.length && high.length)
                add(svg, 'path', 'band a' + i, {d: plot.path(low, X, Y) + plot.path(high.reverse(), X, Y).replace('M', 'L') + 'z'});
            if (l.s) {
                add(svg, 'path', 'raw a' + i, {d: plot.path(raw, X, Y)});
                /* the average of values of both signs may be next to 0 */
                main = points(c, l, l.s).filter(function (p) { return !c.log || Math.log10(p[1]) >= c.y[0]; });
            }
            if (!main.length) return;
            add(svg, 'path', 'line a' + i, {d: plot.path(main, X, Y)});
            if (main.length <= 40)
                main.forEach(function (p) { add(svg, 'circle', 'dot a' + i, {cx: X(p[0]), cy: Y(p[1]), r: 1.7}); });
            var last = raw[raw.length - 1], y = Math.max(b[2] + 12, Math.min(b[3] - 12, Y(last[1])));
            taken.forEach(function (t) { if (Math.abs(t - y) < 25) y = t + (t + 25 < b[3] ? 25 : -25); });
            taken.push(y);
            add(svg, 'circle', 'end a' + i, {cx: X(last[0]), cy: Y(last[1]), r: 2.6});
            if (said.names[i]) add(svg, 'text', 'name a' + i, {x: b[1] + 7, y: y - 2.5}, said.names[i]);
            add(svg, 'text', 'last a' + i, {x: b[1] + 7, y: y + (said.names[i] ? 9 : 3.8)}, short(last[1], d.share));
        });
    }

    function change() {
        hide();
        Array.prototype.forEach.call(form.elements.x, function (e) { if (e.checked) mode = e.value; });
        logarithmic = form.elements.log.checked;
        charts.forEach(draw);
        /* the page of a run that goes on reloads itself */
        history.replaceState(null, '', '#' + mode + (logarithmic ? '-log' : ''));
    }

    /* Sets the controls as the address says, if it says so. */
    function restore() {
        var said = /^#(step|tokens|time)(-log)?$/.exec(location.hash);
        form.reset();
        if (!said) return;
        Array.prototype.forEach.call(form.elements.x, function (e) {
            if (e.value === said[1] && !e.disabled) e.checked = true;
        });
        form.elements.log.checked = Boolean(said[2]);
        change();
    }

    if (form) {
        table = JSON.parse(document.getElementById('axes').textContent);
        Array.prototype.forEach.call(form.elements.x, function (e) {
            e.disabled = table[e.value].every(function (v) { return v == null; });
        });
        restore();
        form.hidden = false;
        form.addEventListener('input', change);
        form.addEventListener('submit', function (ev) { ev.preventDefault(); });
    }
})();
