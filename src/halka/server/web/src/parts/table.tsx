import type { ComponentChildren } from "preact";

export interface Column<Row> {
  title: string;
  cell: (row: Row) => ComponentChildren;
  numeric?: boolean;
}

/** A table whose first column names its rows; narrow screens scroll it sideways. */
export function Table<Row>({ caption, columns, rows, keyOf }: {
  caption: string;
  columns: Column<Row>[];
  rows: Row[];
  keyOf: (row: Row) => string;
}) {
  return (
    <div class="table" role="region" aria-label={caption} tabIndex={0}>
      <table>
        <caption class="unseen">{caption}</caption>
        <thead>
          <tr>{columns.map((column) => <th key={column.title} scope="col" class={column.numeric ? "numeric" : ""}>{column.title}</th>)}</tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map((column, at) => at === 0
                ? <th key={column.title} scope="row">{column.cell(row)}</th>
                : <td key={column.title} class={column.numeric ? "numeric" : ""}>{column.cell(row)}</td>)}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
