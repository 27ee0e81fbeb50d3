// A lint rule: a module has no state of its own. What changes belongs to an object that somebody has made and owns, so that
// two of them can exist, and a test can begin with a new one.

const READONLY_TYPE = /^(Readonly|readonly\b)/;

function typeTextOf(declarator, sourceCode) {
  const annotation = declarator.id.typeAnnotation?.typeAnnotation;
  return annotation ? sourceCode.getText(annotation) : null;
}

/** What holds state in the value of a module's constant; null for nothing. */
function stateIn(value, typeText) {
  if (value === null) return null;
  switch (value.type) {
    case "TSAsExpression":
      return value.typeAnnotation.type === "TSTypeReference" && value.typeAnnotation.typeName.name === "const"
        ? null
        : stateIn(value.expression, typeText);
    case "TSSatisfiesExpression":
      return stateIn(value.expression, typeText);
    case "NewExpression":
      return typeText !== null && READONLY_TYPE.test(typeText) ? null : "an object that can change";
    case "ArrayExpression":
      return typeText !== null && READONLY_TYPE.test(typeText) ? null : "an array that can change";
    case "ObjectExpression":
      // A named type says itself what may change.
      return typeText === null ? "an object that can change" : null;
    default:
      return null;
  }
}

const moduleState = {
  create(context) {
    return {
      Program(program) {
        for (const statement of program.body) {
          const declaration = statement.type === "ExportNamedDeclaration" ? statement.declaration : statement;
          if (declaration?.type !== "VariableDeclaration") continue;
          if (declaration.kind !== "const") {
            context.report({ node: declaration, message: "A module has no variable: give it to an object." });
            continue;
          }
          for (const declarator of declaration.declarations) {
            const state = stateIn(declarator.init, typeTextOf(declarator, context.sourceCode));
            if (state === null) continue;
            const message = `A module holds no state, and this constant is ${state}: give it a Readonly type, or an owner.`;
            context.report({ node: declarator, message });
          }
        }
      },
      PropertyDefinition(field) {
        if (field.static && !field.readonly) {
          context.report({ node: field, message: "A static field is a module's variable: make it readonly, or a field." });
        }
      },
    };
  },
};

export default { meta: { name: "klinesync" }, rules: { "module-state": moduleState } };
