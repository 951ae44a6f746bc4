@echo off
rem MultiLayerLaFTer: as LaFTer, with prompts of its own for each stage of the vision transformer.
rem Its settings are MULTI_LAYER_PROMPT.* and PROMPT_INIT.
rem It sets --multi_layer_prompt and --resume auto.
rem     scripts\LaFTer_MultiPrompt.bat [DATA SET] [FLAGS of LaFTer.py] [KEY VALUE ...]
rem     scripts\LaFTer_MultiPrompt.bat demo --epochs 6
rem     scripts\LaFTer_MultiPrompt.bat emotion6 --root DATA MULTI_LAYER_PROMPT.MODE replace
rem Without a data set as first argument it is emotion6. Paths, also the default folders data and output, are
rem relative to where you stand. What you give comes last: of a flag given twice the last counts, and KEY VALUE at the
rem end beats any flag. A run that was cut off goes on, a finished one says so (--resume auto).
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set DATASET=emotion6
set "FIRST=%~1"
if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=
call "%PY%" "%PROJECT%\LaFTer.py" --resume auto --multi_layer_prompt --dataset-config-file %DATASET% %*
exit /b %ERRORLEVEL%
